"""The planted faults on the real llama.cpp: each turns a gate red, and the sound pair passes.

The student is untrained, with matrices three times as large as it is born with, so that what it sees moves its answers
about as much as after training. Its canvas of 48 px is enlarged to 2x2 tiles, so the filter and the order of tiles count.
"""

from __future__ import annotations

import io
import json
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from pocketvlm.artifacts.files import hash_file
from pocketvlm.artifacts.release import Release, ReleasedType, ReleaseFile
from pocketvlm.environment import read_environment
from pocketvlm.errors import GateRefused
from pocketvlm.llamacpp.grammar import to_gbnf
from pocketvlm.llamacpp.server import LlamaServer
from pocketvlm.llamacpp.toolchain import Toolchain, find_toolchain
from pocketvlm.phone import Pair, Question, Reply
from pocketvlm.report.results import Parity
from pocketvlm.run_file import Device, Task
from pocketvlm.stages.evaluation.gates import PARITY_NATS
from pocketvlm.stages.evaluation.hf_scoring import HfAnswers, HfStudent, ask_images, parity_place
from pocketvlm.stages.evaluation.parity import LEAST_NATS, compare_layout, of_written
from pocketvlm.student import pixels, scoring
from pocketvlm.student.checkpoint import complete_config, load_model
from pocketvlm.student.families import MEDIA
from pocketvlm.student.families.idefics3 import SMOLVLM
from pocketvlm.student.tasks import kind_of
from pocketvlm.student.tiny import build_tiny
from pocketvlm.verify import verify

pytestmark = pytest.mark.llamacpp

CLASSES = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
TASK = Task(question="Which digit is in this picture?\nDigit:", classes=dict.fromkeys(CLASSES, ""))
FIELDS: list[dict[str, Any]] = [
    {"is_food": {"type": "integer", "description": "", "values": [0, 1]}},
    {"image_title": {"type": "string", "description": "", "max_length": 12}},
    {"food_items": {"type": "list", "description": "", "max_items": 2, "max_length": 8}},
    {"ratio": {"type": "number", "description": ""}},
]
EXTRACT = Task(kind="extract", question='Show {"is_food":1,"image_title":"a","food_items":["b"],"ratio":0.5}', fields=FIELDS)
REASONING = Task(question="Which digit is it?", classes=dict.fromkeys(CLASSES, ""), answer="reasoning")
KIND = kind_of(TASK)
PROMPT = KIND.prompt(SMOLVLM.template)
EDGE_PX, CANVAS_PX, IMAGES = 64, 48, 16
DEVICE = Device(canvas_px=CANVAS_PX, longest_edge_px=EDGE_PX, max_new_tokens=8)
LIMIT = PARITY_NATS


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
        return self.asked(Question(prompt, str(KIND.grammar(" ")), KIND, 8), text=text, mmproj=mmproj)

    def asked(self, question: Question, *, text: str = "text-f32.gguf", mmproj: str = "mmproj.gguf") -> Pair:
        return Pair(self.toolchain, self.folder / text, self.folder / mmproj, question, threads=1)

    def question(self, task: Task, max_new_tokens: int = 160) -> Question:
        """As the evaluator puts it together."""
        kind = kind_of(task)
        grammar, schema = kind.grammar(" "), kind.schema()
        if schema is not None:
            files = self.folder / "text.gguf", self.folder / "mmproj.gguf"
            with LlamaServer(self.toolchain, *files, media_marker=MEDIA, threads=1) as server:
                grammar = to_gbnf(server, schema, " ")
        return Question(kind.prompt(SMOLVLM.template), str(grammar), kind, max_new_tokens)

    def parity(self, device: list[dict[int, float]]) -> Parity:
        return compare_layout("f32", device, [answer.first_step for answer in self.hf.merged])

    def parity_with_tiles(self, tiles_of: list[np.ndarray]) -> Parity:
        """As if the student had been scored on other tiles than llama.cpp makes."""
        student = hf_student(self.folder / "student")
        encoded = []
        for image, tiles_NHWC in zip(self.images, tiles_of, strict=True):
            (sound,) = student.encode([image])
            features = student.family.features(student.model, torch.from_numpy(tiles_NHWC))
            encoded.append(scoring.EncodedImage(sound.prompt_ids, features.detach(), list(range(len(tiles_NHWC)))))
        return compare_layout("f32", self.first_steps, [answer.first_step for answer in student.answer(encoded)])


def hf_student(folder: Path) -> HfStudent:
    return HfStudent(folder, TASK, DEVICE)


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
    hf = ask_images(student, images, parity=(), parity_after=None, step=lambda done: None)
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
    assert [reply.label for reply in bench.replies] == [answer.label for answer in bench.hf.merged]
    assert len({reply.label for reply in bench.replies}) > 1


def test_confidence_is_never_above_that_of_transformers(bench: Bench) -> None:
    """An untrained model spreads its answers over more tokens than the server returns: the bound is then far below."""
    for reply, answer in zip(bench.replies, bench.hf.merged, strict=True):
        assert answer.confidence is not None
        assert 0.2 * answer.confidence < reply.confidence() < 1.02 * answer.confidence


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


def test_the_grammar_of_a_schema_makes_an_untrained_model_write_json_without_white_space(bench: Bench) -> None:
    with bench.asked(bench.question(EXTRACT)) as pair:
        replies = [pair.ask(png(image)) for image in bench.images]
        free = [pair.ask_freely(png(image)) for image in bench.images[:2]]
    # The grammar counts bytes that are no text otherwise than a reader of the text does; such a text may be too long.
    texts = [reply for reply in replies if "\ufffd" not in reply.text]
    assert len(texts) > IMAGES // 2
    for reply in texts:
        assert reply.label is not None and reply.stopped == "eos"
        assert reply.text[0] == " " and not re.search(r"\s", re.sub(r'"(\\.|[^"\\])*"', '""', reply.text[1:]))
        assert list(json.loads(reply.text)) == [name for field in FIELDS for name in field]
        assert 0 < reply.confidence() < 1
    assert [reply.label for reply in free] == [None, None]


def test_json_that_is_cut_off_says_nothing(bench: Bench) -> None:
    with bench.asked(bench.question(EXTRACT, max_new_tokens=6)) as pair:
        reply = pair.ask(png(bench.images[0]))
    assert (reply.label, reply.stopped, reply.answer_tokens) == (None, "limit", 6)


def test_a_reasoned_answer_of_an_untrained_model_is_cut_off_or_names_a_class(bench: Bench) -> None:
    """Its grammar does not end a reason; the place of the class is made by asking behind one."""
    question = bench.question(REASONING, max_new_tokens=40)
    lead = ' Reasoning: It is round.\nAnswer:'
    forced = replace(question, grammar=question.grammar.replace('[^\\n]+', '"It is round."'))
    with bench.asked(forced) as pair:
        reply = pair.ask(png(bench.images[0]))
    assert reply.label in CLASSES and reply.reason == "It is round."
    assert reply.text == f"{lead} {reply.label}"
    assert len(reply.choices[0]) >= len(CLASSES) - 3  # over the tokens that may begin a class, and not over the reason's
    assert 0 < reply.confidence() < 1


@pytest.mark.parametrize("task", [EXTRACT, REASONING], ids=["extract", "reasoning"])
def test_parity_of_written_answers_is_measured_behind_what_all_begin_with(bench: Bench, task: Task) -> None:
    folder, question = bench.folder / "student", bench.question(task)
    after = parity_place(folder, task)
    assert after == (' {"is_food":' if task is EXTRACT else " Reasoning:")
    student = HfStudent(folder, task, DEVICE)
    expected = [student.next_step(encoded, after) for encoded in student.encode(bench.images[:4])]
    tail = question.prompt.partition(MEDIA)[2] + after
    nats = {}
    for mmproj in ("mmproj.gguf", "mmproj-other.gguf"):
        with bench.asked(question, mmproj=mmproj) as pair:
            assert [*pair.text_ids(), pair.ids(tail)] == student.text_ids(after)
            steps = [pair.next_step(png(image), after, least_nats=LEAST_NATS - 2) for image in bench.images[:4]]
        nats[mmproj] = compare_layout("f32", of_written(steps, expected), expected).max_nats
    assert nats["mmproj.gguf"] <= LIMIT < 10 * LIMIT < nats["mmproj-other.gguf"]


@pytest.mark.parametrize("fault", [None, "another answer"])
def test_written_answers_of_a_release_are_replayed(bench: Bench, tmp_path: Path, fault: str | None) -> None:
    question = bench.question(EXTRACT)
    (tmp_path / "golden").mkdir()
    (tmp_path / "golden" / "0.png").write_bytes(png(bench.images[0]))
    with bench.asked(question) as pair:
        reply = pair.ask(png(bench.images[0]))
    expected = {"answer": fault or reply.text.removeprefix(" "), "confidence": reply.confidence()}
    golden = {"format": 1, "images": [{"file": "0.png", "label": "{}", "types": {"f32": expected}}]}
    (tmp_path / "golden" / "golden.json").write_text(json.dumps(golden))
    (tmp_path / "prompt.txt").write_bytes(question.prompt.encode())
    (tmp_path / "grammar.gbnf").write_bytes(question.grammar.encode())
    for name in ("text-f32.gguf", "mmproj.gguf"):
        (tmp_path / name).symlink_to(bench.folder / name)
    roles = {"text-f32.gguf": "text_model", "mmproj.gguf": "mmproj", "prompt.txt": "prompt", "grammar.gbnf": "grammar"}
    release = Release(
        name="food", version="1", run="food-0", family="SmolVLM", base="tiny", device=DEVICE.model_dump(), prompt_tokens=90,
        classes=[], task=EXTRACT.shipped(), sampling={"max_new_tokens": 160}, answer_threshold=0.5, llama_cpp="0" * 40,
        types={"f32": ReleasedType(text_model="text-f32.gguf", mmproj="mmproj.gguf", accuracy=1.0)},
        files=[ReleaseFile(**hash_file(tmp_path / name, name).model_dump(), role=role) for name, role in roles.items()],
    )  # fmt: skip
    (tmp_path / "release.json").write_bytes(release.to_bytes())
    if fault is None:
        assert verify(tmp_path, bench.toolchain, threads=1).confidence_gap < 1e-6
    else:
        with pytest.raises(GateRefused, match="was measured as 'another answer'"):
            verify(tmp_path, bench.toolchain, threads=1)
