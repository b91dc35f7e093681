"""Asks everybody: transformers once, then each GGUF pair on a server of its own, one after the other."""

from __future__ import annotations

import io
import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from pocketvlm.artifacts.dataset import Example, read_split
from pocketvlm.llamacpp.toolchain import Toolchain
from pocketvlm.phone import SPARE_TOKENS, Pair, Question, Reply, pair_threads
from pocketvlm.run_file import Recipe
from pocketvlm.stages.evaluation.gguf_scoring import ask_all, from_json, to_json
from pocketvlm.stages.stage import Work
from pocketvlm.student import base, pixels
from pocketvlm.student.grammar import grammar_text
from pocketvlm.student.prompt import MEDIA, prompt_text

if TYPE_CHECKING:
    from pocketvlm.stages.evaluation.hf_scoring import HfAnswers

REFERENCE = ("bf16", "f16")
"""Types of text and mmproj of the pair that is compared with transformers in nats."""
EXACT = "f32"
"""Type of the copy of the reference's text weights that rounds nothing."""


@dataclass(frozen=True)
class PairFiles:
    """One pair that is measured."""

    name: str
    """As reports call it: the type of its text model."""
    text: str
    mmproj: str
    shipped: bool
    reference: bool


def pairs(recipe: Recipe) -> list[PairFiles]:
    """The shipped pairs in the run file's order, then the reference, unless it is one of them."""
    mmproj = recipe.quantiser.mmproj
    found = [
        PairFiles(kind, f"text-{kind}.gguf", f"mmproj-{mmproj}.gguf", True, (kind, mmproj) == REFERENCE)
        for kind in recipe.quantiser.types
    ]
    if not any(pair.reference for pair in found):
        kind, mmproj_kind = REFERENCE
        name = f"{kind}+{mmproj_kind}" if kind in recipe.quantiser.types else kind
        found.append(PairFiles(name, f"text-{kind}.gguf", f"mmproj-{mmproj_kind}.gguf", False, True))
    return found


@dataclass(frozen=True)
class Images:
    """What is asked about."""

    test: list[Example]
    validation: list[Example]
    available: int
    """Test images of the dataset."""
    parity: list[int]
    """Places in `test`."""

    @classmethod
    def read(cls, dataset: Path, recipe: Recipe) -> Images:
        """At most `max_images` of either split, and `parity_images` of the test images, chosen by sha256."""
        test, most = list(read_split(dataset, "test")), recipe.evaluator.max_images
        chosen = _chosen(test, most)
        order = sorted(range(len(chosen)), key=lambda i: chosen[i].sha256)
        return cls(
            test=chosen, validation=_chosen(list(read_split(dataset, "validation")), most), available=len(test),
            parity=sorted(order[: recipe.evaluator.parity_images]),
        )  # fmt: skip


def _chosen(examples: list[Example], most: int | None) -> list[Example]:
    keep = {example.sha256 for example in sorted(examples, key=lambda example: example.sha256)[:most]}
    return [example for example in examples if example.sha256 in keep]


@dataclass(frozen=True)
class PairRun:
    """All that one pair said."""

    test: list[Reply]
    validation: list[Reply]
    blind: list[Reply]
    """To the grey image of each test image; empty if the pair is not shipped."""
    text_ids: list[list[int]]
    first_steps: list[dict[int, float]]
    """Of the parity images, if this is the reference."""
    exact_steps: list[dict[int, float]]
    """The same by the copy of type EXACT."""
    latency: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Answers:
    """All that everybody said."""

    hf: HfAnswers
    runs: dict[str, PairRun]


def ask_everybody(work: Work, toolchain: Toolchain, images: Images) -> Answers:
    """Raises ToolError when a server fails."""
    question = Question(
        prompt_text(work.recipe.task), grammar_text(list(work.recipe.task.classes)), list(work.recipe.task.classes),
        work.recipe.device.max_new_tokens,
    )  # fmt: skip
    hf = _ask_transformers(work, question, images)
    ggufs = work.fetch("quantiser")
    kept = work.scratch / "kept"
    done = work.partial.latest(kept) or 0
    kept.mkdir(exist_ok=True)
    runs: dict[str, PairRun] = {}
    for number, files in enumerate(pairs(work.recipe), start=1):
        path = kept / f"{files.name}.json"
        if number > done:
            run = _ask_pair(work, toolchain, ggufs, files, question, images, max(hf.prompt_tokens))
            path.write_text(json.dumps(_packed(run)))
            work.partial.save(number, kept)
        runs[files.name] = _unpacked(json.loads(path.read_text()))
    return Answers(hf, runs)


def _ask_transformers(work: Work, question: Question, images: Images) -> HfAnswers:
    import torch  # seconds to import; a rerun of a finished run does not need it

    from pocketvlm.stages.evaluation.hf_scoring import HfStudent, score_images

    torch.set_num_threads(work.environment.thread_count())
    checkpoints = work.fetch("merger"), base.fetch_base(work.recipe, work.recipe_folder, work.scratch, work.environment)
    merged, untrained = (
        HfStudent(folder, prompt=question.prompt, classes=question.classes, longest_edge_px=work.recipe.device.longest_edge_px)
        for folder in checkpoints
    )
    total = len(images.test)
    step: Callable[[int], None] = lambda done: work.progress.step(done, total, "images by transformers")  # noqa: E731
    decoded = (Image.open(io.BytesIO(example.image_png)).convert("RGB") for example in images.test)
    return score_images(merged, untrained, decoded, question.prompt.split(MEDIA), step)


def _ask_pair(
    work: Work, toolchain: Toolchain, ggufs: Path, files: PairFiles, question: Question, images: Images, longest: int
) -> PairRun:
    text, mmproj = ggufs / files.text, ggufs / files.mmproj
    threads = work.environment.thread_count()
    clock = time.monotonic()
    # The server rounds up to 256 by itself; the rest is room for its own tokens around the image.
    context = longest + question.max_new_tokens + SPARE_TOKENS
    with Pair(toolchain, text, mmproj, question, threads=threads, context_tokens=context) as pair:
        started = time.monotonic() - clock
        total = len(images.test) + len(images.validation)
        unit = f"images by {files.name}"
        test = ask_all(pair, _pngs(images.test), lambda done: work.progress.step(done, total, unit))
        validation = ask_all(pair, _pngs(images.validation), lambda done: work.progress.step(len(test) + done, total, unit))
        blind = _ask_blind(pair, images.test) if files.shipped else []
        first = [pair.first_step(images.test[place].image_png) for place in images.parity] if files.reference else []
        latency = {**_latency(test), "start_s": round(started, 3), "threads": pair_threads(text, mmproj, threads)}
        text_ids = pair.text_ids()
    exact = _ask_exact(work, toolchain, text, mmproj, question, images, context) if files.reference else []
    return PairRun(test, validation, blind, text_ids, first, exact, latency)


def _ask_exact(
    work: Work, toolchain: Toolchain, text: Path, mmproj: Path, question: Question, images: Images, context: int
) -> list[dict[int, float]]:
    """First steps of the parity images by a float32 copy of the text weights, which holds bf16 exactly."""
    threads = work.environment.thread_count()
    copy = work.scratch / f"text-{EXACT}.gguf"
    toolchain.run("llama-quantize", ["--allow-requantize", str(text), str(copy), EXACT, str(threads)])
    with Pair(toolchain, copy, mmproj, question, threads=threads, context_tokens=context) as pair:
        steps = [pair.first_step(images.test[place].image_png) for place in images.parity]
    copy.unlink()
    return steps


def _pngs(examples: Sequence[Example]) -> list[bytes]:
    return [example.image_png for example in examples]


def _ask_blind(pair: Pair, examples: Sequence[Example]) -> list[Reply]:
    """All grey images of one size are one image, so each size is asked once."""
    replies: dict[tuple[int, int], Reply] = {}
    sizes = [Image.open(io.BytesIO(example.image_png)).size for example in examples]
    for size in sizes:
        if size not in replies:
            file = io.BytesIO()
            pixels.blind(Image.new("RGB", size)).save(file, "PNG")
            replies[size] = pair.ask(file.getvalue())
    return [replies[size] for size in sizes]


def _latency(replies: Sequence[Reply]) -> dict[str, float]:
    """Milliseconds per image as the server counted them."""
    spans = {
        "prompt_ms": [reply.prompt_ms for reply in replies],
        "answer_ms": [reply.answer_ms for reply in replies],
        "total_ms": [reply.prompt_ms + reply.answer_ms for reply in replies],
    }
    numbers = {}
    for name, values in spans.items():
        numbers[f"{name}_median"] = round(statistics.median(values), 3)
        numbers[f"{name}_p95"] = round(sorted(values)[int(0.95 * (len(values) - 1))], 3)
    return numbers


def _packed(run: PairRun) -> dict[str, Any]:
    replies = {name: to_json(getattr(run, name)) for name in ("test", "validation", "blind")}
    steps = {name: [sorted(step.items()) for step in getattr(run, name)] for name in ("first_steps", "exact_steps")}
    return {**replies, **steps, "text_ids": run.text_ids, "latency": run.latency}


def _unpacked(data: dict[str, Any]) -> PairRun:
    replies = {name: from_json(data[name]) for name in ("test", "validation", "blind")}
    first, exact = ([dict(step) for step in data[name]] for name in ("first_steps", "exact_steps"))
    return PairRun(
        **replies, text_ids=data["text_ids"], first_steps=first, exact_steps=exact, latency=data["latency"]
    )  # fmt: skip
