"""SmolVLM's published dimensions with random weights: transformers against llama.cpp, on images of every kind."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from runs import FULL
from transformers import SmolVLMForConditionalGeneration

from pocketvlm.sources.images import ORIENTATION, decode
from pocketvlm.student import pixels, published

pytestmark = pytest.mark.real_size
MAX_NATS = 0.01
MAX_PIXELS = 50_000_000
CANVAS_PX = 256


@pytest.mark.parametrize("size", published.SIZES)
def test_it_has_the_published_number_of_weights(size: str) -> None:
    dimensions = published.SIZES[size]
    with torch.device("meta"):
        model = SmolVLMForConditionalGeneration(published.published_config(dimensions, published.build_published_tokenizer()))
    assert sum(parameter.numel() for parameter in model.parameters()) == dimensions.parameters


def test_special_tokens_have_their_published_ids() -> None:
    tokenizer = published.build_published_tokenizer()
    ids = {
        "<|endoftext|>": 0, "<|im_start|>": 1, "<|im_end|>": 2, "<global-img>": 49152, "<row_1_col_1>": 49153,
        "<row_2_col_3>": 49161, "<row_6_col_6>": 49188, "<fake_token_around_image>": 49189, "<image>": 49190,
        "<end_of_utterance>": 49279,
    }  # fmt: skip
    assert {token: tokenizer.convert_tokens_to_ids(token) for token in ids} == ids
    assert len(tokenizer) == published.VOCABULARY


@pytest.fixture(scope="module")
def sides(both_sides: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder: Path = tmp_path_factory.mktemp("256M")
    published.build_published(folder, size="256M", seed=0, longest_edge_px=512)
    with both_sides(folder, 512) as sides:
        yield sides


@pytest.fixture(scope="module")
def square(sides: Any, noise: Any) -> Any:
    """A square image on both sides."""
    return sides.compare(noise(CANVAS_PX, CANVAS_PX))


def test_text_becomes_the_same_tokens(sides: Any) -> None:
    device, ours = sides.text_ids()
    assert device == ours


def test_a_budget_of_512_is_128_visual_tokens(sides: Any, square: Any) -> None:
    text = sum(map(len, sides.text_ids()[0]))
    markers = 6  # <fake> <row_1_col_1> before the tile; \n\n <fake> <global-img> before the overview; <fake> at the end
    assert square.device_tokens - text - markers == 128
    assert square.device_tokens == square.tokens


def test_log_probabilities_agree_on_a_square(square: Any) -> None:
    assert square.nats() <= MAX_NATS


def test_another_image_is_another_answer(sides: Any, noise: Any, square: Any) -> None:
    """Random weights could answer the same whatever they see; then agreement would prove nothing."""
    assert square.nats(sides.reference(noise(24, 24, seed=1).resize((CANVAS_PX, CANVAS_PX)))) > 20 * MAX_NATS


def test_another_resize_filter_is_noticed(sides: Any, noise: Any, square: Any) -> None:
    enlarged = noise(CANVAS_PX, CANVAS_PX).resize((512, 512), Image.Resampling.BICUBIC)
    assert square.nats(sides.reference(enlarged)) > 3 * MAX_NATS


def encode(image: Image.Image, kind: str, **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def rotated(image: Image.Image) -> bytes:
    """As a phone writes it that was held upright: the pixels lie on their side, and EXIF says so."""
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    return encode(image, "JPEG", exif=exif, quality=95)


FILES: dict[str, Callable[[Any], bytes]] = {
    "one_pixel": lambda noise: encode(noise(1, 1), "PNG"),
    "thin": lambda noise: encode(noise(4000, 30), "PNG"),
    "grey": lambda noise: encode(noise(300, 200).convert("L"), "PNG"),
    "palette": lambda noise: encode(noise(200, 300).quantize(64), "PNG"),
    "cmyk": lambda noise: encode(noise(120, 90).resize((640, 480)).convert("CMYK"), "JPEG"),
    "rotated": lambda noise: rotated(noise(40, 30).resize((400, 300))),
}
LETTERBOXED = tuple(FILES) if FULL else ("one_pixel", "cmyk")
"""Once decoded, which tests/sources shows for each kind, all are RGB squares of one size."""
CASES = [(name, CANVAS_PX) for name in LETTERBOXED] + [("one_pixel", None), ("thin", None), ("rotated", None)]


@pytest.mark.parametrize(("name", "canvas_px"), CASES)
def test_log_probabilities_agree_on_images_of_every_kind(sides: Any, noise: Any, name: str, canvas_px: int | None) -> None:
    image = decode(FILES[name](noise), MAX_PIXELS)
    assert isinstance(image, Image.Image)
    compared = sides.compare(image if canvas_px is None else pixels.letterbox(image, canvas_px))
    assert compared.device_tokens == compared.tokens
    assert compared.nats() <= MAX_NATS
