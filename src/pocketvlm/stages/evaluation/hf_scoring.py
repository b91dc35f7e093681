"""The same images by transformers: the merged model and the base before training, in float32 on the CPU.

Float32 on the CPU is the reference that every GGUF is compared with: a GPU's convolutions use TF32 unless told not to,
which alone is as large as the differences looked for. Each image is one forward pass; the vision tower runs once for
both models where training left it as it was.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from pocketvlm.stages.sharing import dealt
from pocketvlm.student import pixels, scoring
from pocketvlm.student.checkpoint import load_model, load_tokenizer
from pocketvlm.student.families import read_geometry
from pocketvlm.student.grammar import AllowedAnswers
from pocketvlm.student.prompt import PromptEncoder

BATCH = 16
"""Images held at once: their features are 3 MB a tile at full size. A share takes whole batches, because the low bits of a
sum depend on how many are summed at once."""


@dataclass(frozen=True)
class HfAnswers:
    """What transformers says of the images, in order."""

    merged: list[scoring.Answer]
    base: list[scoring.Answer]
    prompt_tokens: list[int]
    """Tokens of each image's prompt in the student's layout."""
    text_ids: list[list[int]]
    """Ids of the prompt's text before and after the image, as the student was trained on them."""


class HfStudent:
    """A checkpoint folder, loaded for scoring."""

    def __init__(self, folder: Path, *, prompt: str, classes: Sequence[str], longest_edge_px: int) -> None:
        tokenizer, geometry = load_tokenizer(folder), read_geometry(folder)
        self.model: Any = load_model(folder)
        self.encoder = PromptEncoder(tokenizer, prompt=prompt, tokens_per_tile=geometry.tokens_per_tile)
        self.allowed = AllowedAnswers(classes, tokenizer.get_vocab(), tokenizer.all_special_ids)
        self.layout = scoring.Layout(geometry.tile_px, longest_edge_px)

    def encode(self, images: Iterable[Image.Image]) -> list[scoring.EncodedImage]:
        """Prompt ids and vision features."""
        return list(scoring.encode_images(self.model, self.encoder, self.layout, images, batch_size=BATCH))

    def answer(self, images: Sequence[scoring.EncodedImage]) -> list[scoring.Answer]:
        """The greedy answers inside the grammar."""
        return scoring.score(self.model, self.encoder, self.allowed, images, batch_size=BATCH)

    def sees_as(self, other: HfStudent) -> bool:
        """Whether both vision towers are equal, and with them the features before the connector."""
        mine, its = self.model.model.vision_model.state_dict(), other.model.model.vision_model.state_dict()
        return mine.keys() == its.keys() and all(torch.equal(mine[name], its[name]) for name in mine)


def score_images(
    merged: HfStudent, base: HfStudent, images: Iterable[Image.Image], prompt_text: Sequence[str], step: Callable[[int], None]
) -> HfAnswers:
    """Answers of both models to RGB images on the canvas; `prompt_text` is the text before and after the image."""
    text_ids = [list(merged.encoder.tokenizer.encode(text, add_special_tokens=False)) for text in prompt_text]
    answers = HfAnswers([], [], [], text_ids)
    shared = merged.sees_as(base)
    pending = iter(images)
    while chunk := list(islice(pending, BATCH)):
        encoded = merged.encode(chunk)
        answers.merged.extend(merged.answer(encoded))
        answers.base.extend(base.answer(encoded if shared else base.encode(chunk)))
        answers.prompt_tokens.extend(len(image.prompt_ids) for image in encoded)
        step(len(answers.merged))
    return answers


def longest_prompt(folder: Path, *, prompt: str, longest_edge_px: int, sizes: Iterable[tuple[int, int]]) -> int:
    """Most tokens that the prompt takes with an image of any of these sizes (width, height), by a checkpoint's tokenizer."""
    geometry = read_geometry(folder)
    encoder = PromptEncoder(load_tokenizer(folder), prompt=prompt, tokens_per_tile=geometry.tokens_per_tile)
    grids = {pixels.grid(*size, tile_px=geometry.tile_px, longest_edge_px=longest_edge_px) for size in sizes}
    return max(len(encoder.prompt(grid)) for grid in grids)


def write_answers(path: Path, answers: HfAnswers) -> None:
    """As JSON: floats survive it exactly."""
    models = {
        name: [(answer.index, answer.confidence, sorted(answer.first_step.items())) for answer in getattr(answers, name)]
        for name in ("merged", "base")
    }
    path.write_text(json.dumps({**models, "prompt_tokens": answers.prompt_tokens, "text_ids": answers.text_ids}))


def read_answers(path: Path) -> HfAnswers:
    """What `write_answers` wrote."""
    data: dict[str, Any] = json.loads(path.read_text())
    merged, base = (
        [scoring.Answer(index, confidence, dict(first)) for index, confidence, first in data[name]]
        for name in ("merged", "base")
    )
    return HfAnswers(merged, base, data["prompt_tokens"], data["text_ids"])


def join_answers(shares: Sequence[HfAnswers], total: int) -> HfAnswers:
    """The answers of all shares as one, to `total` images in their order."""
    return HfAnswers(
        dealt(total, [share.merged for share in shares], BATCH),
        dealt(total, [share.base for share in shares], BATCH),
        dealt(total, [share.prompt_tokens for share in shares], BATCH),
        shares[0].text_ids,
    )
