"""Asks everybody: transformers once, then each GGUF pair on a server of its own, one after the other.

A share has every N-th image, and of what transformers is asked every N-th batch.
"""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

from PIL import Image

from pocketvlm.artifacts.dataset import Example, read_split
from pocketvlm.environment import Shard
from pocketvlm.llamacpp.toolchain import Toolchain
from pocketvlm.phone import SPARE_TOKENS, Pair, Question, Reply, pair_threads
from pocketvlm.run_file import Recipe
from pocketvlm.stages.evaluation.answers import Answers, PairRun, join, read_run, write_run
from pocketvlm.stages.sharing import Piece, Share
from pocketvlm.stages.stage import Work
from pocketvlm.student import base, pixels
from pocketvlm.student.grammar import grammar_text
from pocketvlm.student.prompt import MEDIA, prompt_text

REFERENCE = ("bf16", "f16")
"""Types of text and mmproj of the pair that is compared with transformers in nats."""
EXACT = "f32"
"""Type of the copy of the reference's text weights that rounds nothing."""
ANSWERS = "answers.json"
TRANSFORMERS = "transformers"


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

    def share(self, shard: Shard) -> Images:
        """Every N-th of each."""
        parity = [place // shard.count for place in self.parity if place % shard.count == shard.index]
        return Images(shard.take(self.test), shard.take(self.validation), self.available, parity)


def _chosen(examples: list[Example], most: int | None) -> list[Example]:
    keep = {example.sha256 for example in sorted(examples, key=lambda example: example.sha256)[:most]}
    return [example for example in examples if example.sha256 in keep]


class Asking:
    """What all pieces of all shares need; loaded when the first of them asks."""

    def __init__(self, work: Work, toolchain: Toolchain, images: Images) -> None:
        task = work.recipe.task
        classes = list(task.classes)
        self.work, self.toolchain, self.images = work, toolchain, images
        self.question = Question(prompt_text(task), grammar_text(classes), classes, work.recipe.device.max_new_tokens)
        self.threads = work.environment.thread_count()

    @cached_property
    def ggufs(self) -> Path:
        """The quantiser's files."""
        return self.work.fetch("quantiser")

    @cached_property
    def merged(self) -> Path:
        """The checkpoint that the files were made of."""
        return self.work.fetch("merger")

    @cached_property
    def context_tokens(self) -> int:
        """For the longest prompt of all shares, so that every server is the same."""
        from pocketvlm.stages.evaluation.hf_scoring import longest_prompt

        sizes = {Image.open(io.BytesIO(png)).size for png in _pngs([*self.images.test, *self.images.validation])}
        longest = longest_prompt(
            self.merged, prompt=self.question.prompt, longest_edge_px=self.work.recipe.device.longest_edge_px, sizes=sizes
        )
        # The server rounds up to 256 by itself; the rest is room for its own tokens around the image.
        return longest + self.question.max_new_tokens + SPARE_TOKENS

    def pieces(self, shard: Shard) -> list[Piece]:
        """Transformers, then a pair each."""
        own = self.images.share(shard)
        asked = [Piece(_piece(files), partial(self._ask_pair, files, own)) for files in pairs(self.work.recipe)]
        return [Piece(TRANSFORMERS, partial(self._ask_transformers, shard)), *asked]

    def _ask_transformers(self, shard: Shard, folder: Path) -> None:
        import torch  # seconds to import; a rerun of a finished run does not need it

        from pocketvlm.stages.evaluation.hf_scoring import BATCH, HfAnswers, HfStudent, score_images, write_answers

        own = shard.take(self.images.test, BATCH)
        if not own:
            write_answers(folder / ANSWERS, HfAnswers([], [], [], []))
            return
        torch.set_num_threads(self.threads)
        recipe, question = self.work.recipe, self.question
        before = base.fetch_base(recipe, self.work.recipe_folder, self.work.scratch, self.work.environment)
        merged, untrained = (
            HfStudent(path, prompt=question.prompt, classes=question.classes, longest_edge_px=recipe.device.longest_edge_px)
            for path in (self.merged, before)
        )
        decoded = (Image.open(io.BytesIO(example.image_png)).convert("RGB") for example in own)
        answers = score_images(merged, untrained, decoded, question.prompt.split(MEDIA), self._steps(TRANSFORMERS, len(own)))
        write_answers(folder / ANSWERS, answers)

    def _ask_pair(self, files: PairFiles, own: Images, folder: Path) -> None:
        write_run(folder / ANSWERS, self._run(files, own) if own.test or own.validation else PairRun([], [], [], [], [], []))

    def _run(self, files: PairFiles, own: Images) -> PairRun:
        text, mmproj = self.ggufs / files.text, self.ggufs / files.mmproj
        context_tokens = self.context_tokens
        clock = time.monotonic()
        with Pair(self.toolchain, text, mmproj, self.question, threads=self.threads, context_tokens=context_tokens) as pair:
            started = time.monotonic() - clock
            step = self._steps(files.name, len(own.test) + len(own.validation))
            replies = _ask_all(pair, _pngs([*own.test, *own.validation]), step)
            test, validation = replies[: len(own.test)], replies[len(own.test) :]
            blind = _ask_blind(pair, own.test) if files.shipped else []
            first = [pair.first_step(own.test[place].image_png) for place in own.parity] if files.reference else []
            text_ids = pair.text_ids()
        exact = self._ask_exact(text, mmproj, own) if files.reference and own.parity else []
        latency = {"start_s": round(started, 3), "threads": pair_threads(text, mmproj, self.threads)}
        return PairRun(test, validation, blind, text_ids, first, exact, latency)

    def _ask_exact(self, text: Path, mmproj: Path, own: Images) -> list[dict[int, float]]:
        """First steps of the parity images by a float32 copy of the text weights, which holds bf16 exactly."""
        copy = self.work.scratch / f"text-{EXACT}.gguf"
        self.toolchain.run("llama-quantize", ["--allow-requantize", str(text), str(copy), EXACT, str(self.threads)])
        with Pair(
            self.toolchain, copy, mmproj, self.question, threads=self.threads, context_tokens=self.context_tokens
        ) as pair:
            steps = [pair.first_step(own.test[place].image_png) for place in own.parity]
        copy.unlink()
        return steps

    def _steps(self, name: str, total: int) -> Callable[[int], None]:
        return lambda done: self.work.progress.step(done, total, f"images by {name}", unseen={"asked": {name: done}})


def _piece(files: PairFiles) -> str:
    return files.name.replace("+", "-with-")  # stores do not agree on a plus in a key


def ask_everybody(work: Work, toolchain: Toolchain, images: Images) -> Answers | None:
    """Asks what this process' share is to be asked. None: other shares are not there yet. Raises ToolError."""
    asking = Asking(work, toolchain, images)
    shares = work.desk.share(asking.pieces)
    return None if shares is None else _join(shares, images, pairs(work.recipe))


def _join(shares: Sequence[Share], images: Images, files: Sequence[PairFiles]) -> Answers:
    from pocketvlm.stages.evaluation.hf_scoring import join_answers, read_answers

    kept = [[folder / ANSWERS for folder in share.folders] for share in shares]
    return Answers(
        hf=join_answers([read_answers(paths[0]) for paths in kept], len(images.test)),
        runs={
            pair.name: join([read_run(paths[number]) for paths in kept], len(images.test), len(images.validation), images.parity)
            for number, pair in enumerate(files, start=1)
        },
        share_seconds=[share.seconds for share in shares],
    )


def _ask_all(pair: Pair, images: Sequence[bytes], step: Callable[[int], None]) -> list[Reply]:
    """Answers to all images, in order; `step` is told how many are done."""
    replies = []
    for image in images:
        replies.append(pair.ask(image))
        step(len(replies))
    return replies


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
