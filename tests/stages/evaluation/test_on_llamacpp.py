"""The planted faults on the real llama.cpp: each turns a gate red, and the sound pair passes.

The student is untrained, with matrices three times as large as it is born with, so that what it sees moves its answers
about as much as after training. Its canvas of 48 px is enlarged to 2x2 tiles, so the filter and the order of tiles count.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pocketvlm.environment import read_environment
from pocketvlm.llamacpp.toolchain import Toolchain, find_toolchain
from pocketvlm.phone import Pair, Question, Reply
from pocketvlm.report.results import Parity
from pocketvlm.run_file import Gates, Task
from pocketvlm.stages.evaluation.hf_scoring import HfAnswers, HfStudent, score_images
from pocketvlm.stages.evaluation.parity import compare_layout
from pocketvlm.student import pixels, scoring
from pocketvlm.student.checkpoint import complete_config, load_model
from pocketvlm.student.grammar import grammar_text
from pocketvlm.student.prompt import MEDIA, prompt_text
from pocketvlm.student.tiny import build_tiny

pytestmark = pytest.mark.llamacpp

CLASSES = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
TASK = Task(question="Which digit is in this picture?\nDigit:", classes=dict.fromkeys(CLASSES, ""))
PROMPT = prompt_text(TASK)
EDGE_PX, CANVAS_PX, IMAGES = 64, 48, 16
LIMIT = Gates().max_parity_nats


def lively(folder: Path, seed: int) -> Path:
    build_tiny(folder, seed=seed, longest_edge_px=EDGE_PX)
    model = load_model(folder)
    with torch.no_grad():
        for name, weights in model.named_parameters():
            if weights.ndim > 1 and "embed" not in name:
                weights.mul_(3)
    model.to(torch.bfloat16).save_pretrained(folder)
    complete_config(folder)
    return folder


def png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


@dataclass(frozen=True)
class Bench:
    """The student, its pair, the mmproj of another student, and what the sound pair says of the images."""

    toolchain: Toolchain
    folder: Path
    images: list[Image.Image]
    hf: HfAnswers
    first_steps: list[dict[int, float]]
    replies: list[Reply]
    text_ids: list[list[int]]

    def pair(self, *, text: str = "text-f32.gguf", mmproj: str = "mmproj.gguf", prompt: str = PROMPT) -> Pair:
        question = Question(prompt, grammar_text(CLASSES), CLASSES, 8)
        return Pair(self.toolchain, self.folder / text, self.folder / mmproj, question, threads=1)

    def parity(self, device: list[dict[int, float]]) -> Parity:
        return compare_layout("f32", device, [answer.first_step for answer in self.hf.merged])

    def parity_with_tiles(self, tiles_of: list[np.ndarray]) -> Parity:
        """As if the student had been scored on other tiles than llama.cpp makes."""
        student = hf_student(self.folder / "student")
        encoded = []
        for image, tiles_NHWC in zip(self.images, tiles_of, strict=True):
            (sound,) = student.encode([image])
            features = scoring.forward.vision_features(
                student.model, scoring.forward.normalise(torch.from_numpy(tiles_NHWC), torch.float32)
            )
            encoded.append(scoring.EncodedImage(sound.prompt_ids, features.detach(), list(range(len(tiles_NHWC)))))
        return compare_layout("f32", self.first_steps, [answer.first_step for answer in student.answer(encoded)])


def hf_student(folder: Path) -> HfStudent:
    return HfStudent(folder, prompt=PROMPT, classes=CLASSES, longest_edge_px=EDGE_PX)


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    torch.set_num_threads(1)
    folder, toolchain = tmp_path_factory.mktemp("bench"), find_toolchain(read_environment())
    for name, seed in (("student", 0), ("other", 1)):
        toolchain.convert(lively(folder / name, seed), text=folder / f"text-{name}.gguf", text_type="bf16",
                          mmproj=folder / f"mmproj-{name}.gguf", mmproj_type="f16")  # fmt: skip
    (folder / "text-student.gguf").rename(folder / "text.gguf")
    (folder / "mmproj-student.gguf").rename(folder / "mmproj.gguf")
    toolchain.run("llama-quantize", ["--allow-requantize", str(folder / "text.gguf"), str(folder / "text-f32.gguf"), "f32", "1"])
    rng = np.random.default_rng(0)
    coarse = [Image.fromarray(rng.integers(0, 255, (6, 6, 3), dtype=np.uint8)) for _ in range(IMAGES)]
    images = [image.resize((CANVAS_PX, CANVAS_PX), Image.Resampling.NEAREST) for image in coarse]
    student = hf_student(folder / "student")
    hf = score_images(student, hf_student(folder / "other"), images, PROMPT.split(MEDIA), lambda done: None)
    found = Bench(toolchain, folder, images, hf, [], [], [])
    with found.pair() as pair:
        found.first_steps.extend(pair.first_step(png(image)) for image in images)
        found.replies.extend(pair.ask(png(image)) for image in images)
        found.text_ids.extend(pair.text_ids())
    return found


def other_filter(image: Image.Image, resample: Image.Resampling) -> np.ndarray:
    side = EDGE_PX
    large = image.resize((side, side), resample)
    rows = np.asarray(large).reshape(2, 32, 2, 32, 3).swapaxes(1, 2).reshape(-1, 32, 32, 3)
    return np.concatenate([rows, np.asarray(large.resize((32, 32), resample))[None]])


def sound_tiles(image: Image.Image) -> np.ndarray:
    tiles_NHWC, _ = pixels.tiles(image, tile_px=32, longest_edge_px=EDGE_PX)
    return tiles_NHWC


def test_sound_pair_is_asked_as_the_student_was_trained_and_answers_alike(bench: Bench) -> None:
    assert bench.text_ids == bench.hf.text_ids
    assert [reply.prompt_tokens for reply in bench.replies] == bench.hf.prompt_tokens
    assert bench.parity(bench.first_steps).max_nats <= LIMIT
    assert [reply.index for reply in bench.replies] == [answer.index for answer in bench.hf.merged]
    assert len({reply.index for reply in bench.replies}) > 1


def test_confidence_is_never_above_that_of_transformers(bench: Bench) -> None:
    """An untrained model spreads its answers over more tokens than the server returns: the bound is then far below."""
    for reply, answer in zip(bench.replies, bench.hf.merged, strict=True):
        assert 0.5 * answer.confidence < reply.confidence() < 1.02 * answer.confidence


def test_sound_tiles_by_hand_are_sound(bench: Bench) -> None:
    """What the faults below are measured against."""
    assert bench.parity_with_tiles([sound_tiles(image) for image in bench.images]).max_nats <= LIMIT
    assert all((other_filter(image, pixels.FILTER) == sound_tiles(image)).all() for image in bench.images)


def test_a_space_in_the_prompt_turns_ids_tokens_and_parity_red(bench: Bench) -> None:
    with bench.pair(prompt=PROMPT.replace("User:", "User: ")) as pair:
        assert pair.text_ids() != bench.hf.text_ids
        assert pair.ask(png(bench.images[0])).prompt_tokens != bench.hf.prompt_tokens[0]
        assert bench.parity([pair.first_step(png(image)) for image in bench.images]).max_nats > 10 * LIMIT


def test_tiles_in_another_order_turn_parity_red(bench: Bench) -> None:
    transposed = [sound_tiles(image)[[0, 2, 1, 3, 4]] for image in bench.images]
    assert bench.parity_with_tiles(transposed).max_nats > 10 * LIMIT


@pytest.mark.parametrize("name", ["BICUBIC", "BILINEAR", "HAMMING"])
def test_another_resize_filter_turns_parity_red(bench: Bench, name: str) -> None:
    faulty = [other_filter(image, Image.Resampling[name]) for image in bench.images]
    assert bench.parity_with_tiles(faulty).max_nats > 2 * LIMIT


def test_the_mmproj_of_another_checkpoint_turns_parity_red(bench: Bench) -> None:
    with bench.pair(mmproj="mmproj-other.gguf") as pair:
        assert bench.parity([pair.first_step(png(image)) for image in bench.images]).max_nats > 10 * LIMIT


def test_an_answer_is_the_same_every_time(bench: Bench) -> None:
    with bench.pair() as pair:
        again = [pair.ask(png(image)) for image in bench.images[:4]]
    assert [(r.text, r.choices) for r in again] == [(r.text, r.choices) for r in bench.replies[:4]]
