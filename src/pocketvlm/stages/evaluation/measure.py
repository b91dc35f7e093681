"""Asks everybody: transformers once, then each GGUF pair on a server of its own, one after the other, and that of the base.

A share has every N-th image, and of what transformers is asked every N-th batch.
"""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path

from PIL import Image

from pocketvlm.artifacts.dataset import Example, read_split
from pocketvlm.environment import Shard
from pocketvlm.llamacpp.grammar import to_gbnf
from pocketvlm.llamacpp.pair import CLOSEST, make_pair, mmproj_file, text_file
from pocketvlm.llamacpp.server import LlamaServer
from pocketvlm.llamacpp.toolchain import Toolchain
from pocketvlm.phone import SPARE_TOKENS, Pair, Question, Reply, pair_threads
from pocketvlm.run_file import Recipe
from pocketvlm.stages.evaluation.answers import Answers, PairRun, join, read_run, write_run
from pocketvlm.stages.evaluation.parity import LEAST_NATS, SPARE_NATS
from pocketvlm.stages.sharing import Piece, Share
from pocketvlm.stages.stage import Work
from pocketvlm.student import base, pixels
from pocketvlm.student.families import MEDIA, read_geometry
from pocketvlm.student.prompt import answer_lead
from pocketvlm.student.tasks import kind_of

EXACT = "f32"
"""Type of the copy of the reference's text weights that rounds nothing."""
ANSWERS = "answers.json"
TRANSFORMERS, BASE = "transformers", "base"
Steps = list[dict[int, float]]


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
    found = [_made(kind, (kind, mmproj), shipped=True) for kind in recipe.quantiser.types]
    if not any(pair.reference for pair in found):
        kind, mmproj_kind = CLOSEST
        name = f"{kind}+{mmproj_kind}" if kind in recipe.quantiser.types else kind
        found.append(_made(name, CLOSEST, shipped=False))
    return found


def _made(name: str, types: tuple[str, str], *, shipped: bool) -> PairFiles:
    """The quantiser's pair of these types."""
    text, mmproj = text_file(Path(), types[0]), mmproj_file(Path(), types[1])
    return PairFiles(name, text.name, mmproj.name, shipped, types == CLOSEST)


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
        self.work, self.toolchain, self.images = work, toolchain, images
        self.kind = kind_of(work.recipe.task)
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
    def question(self) -> Question:
        """Prompt and grammar as they ship. llama.cpp makes that of a JSON answer, on the first shipped pair."""
        prompt = self.kind.prompt(read_geometry(self.merged).family.template)
        lead = answer_lead(prompt)
        grammar, schema = self.kind.grammar(lead), self.kind.schema()
        if grammar is None:
            assert schema is not None, "a kind of task has a grammar or a schema"
            first = pairs(self.work.recipe)[0]
            text, mmproj = self.ggufs / first.text, self.ggufs / first.mmproj
            with LlamaServer(self.toolchain, text, mmproj, media_marker=MEDIA, context_tokens=256, threads=1) as server:
                grammar = to_gbnf(server, schema, lead)
        return Question(prompt, grammar, self.kind, self.work.recipe.device.max_new_tokens)

    @cached_property
    def parity_after(self) -> str | None:
        """As in `Metrics`."""
        from pocketvlm.stages.evaluation.hf_scoring import parity_place

        return parity_place(self.merged, self.work.recipe.task)

    @cached_property
    def context_tokens(self) -> int:
        """For the longest prompt of all shares, so that every server is the same."""
        from pocketvlm.stages.evaluation.hf_scoring import longest_prompt

        sizes = {Image.open(io.BytesIO(png)).size for png in _pngs([*self.images.test, *self.images.validation])}
        longest = longest_prompt(self.merged, self.work.recipe.task, self.work.recipe.device, sizes)
        # The server rounds up to 256 by itself; the rest is room for its own tokens around the image.
        return longest + self.question.max_new_tokens + SPARE_TOKENS

    @cached_property
    def base_pair(self) -> PairFiles:
        """The pair of the checkpoint before training, of the first shipped type."""
        from pocketvlm.student.convertible import make_convertible

        recipe, scratch = self.work.recipe, self.work.scratch
        source = base.fetch_base(recipe, self.work.recipe_folder, scratch, self.work.environment, self.work.store)
        geometry, folder = read_geometry(source), (scratch / "base-pair").resolve()
        folder.mkdir()
        kind, mmproj = recipe.quantiser.types[0], recipe.quantiser.mmproj
        make_pair(
            self.toolchain, make_convertible(source, scratch / "base-checkpoint", geometry, recipe.device), folder, types=[kind],
            mmproj=mmproj, mmproj_keys=geometry.family.mmproj_keys(geometry, recipe.device), scratch=scratch / "base-convert",
            threads=self.threads,
        )  # fmt: skip
        return PairFiles(BASE, str(text_file(folder, kind)), str(mmproj_file(folder, mmproj)), shipped=False, reference=False)

    def pieces(self, shard: Shard) -> list[Piece]:
        """Transformers, then a pair each, then the base's."""
        own = self.images.share(shard)
        asked = [Piece(_piece(files), partial(self._ask_pair, files, own)) for files in pairs(self.work.recipe)]
        return [Piece(TRANSFORMERS, partial(self._ask_transformers, shard)), *asked, Piece(BASE, partial(self._ask_base, own))]

    def _ask_transformers(self, shard: Shard, folder: Path) -> None:
        import torch  # seconds to import; a rerun of a finished run does not need it

        from pocketvlm.stages.evaluation.hf_scoring import BATCH, HfAnswers, HfStudent, ask_images, write_answers

        places = shard.take(range(len(self.images.test)), BATCH)
        if not places:
            write_answers(folder / ANSWERS, HfAnswers())
            return
        torch.set_num_threads(self.threads)
        student = HfStudent(self.merged, self.work.recipe.task, self.work.recipe.device)
        decoded = (Image.open(io.BytesIO(self.images.test[place].image_png)).convert("RGB") for place in places)
        parity = {number for number, place in enumerate(places) if place in self.images.parity}
        answers = ask_images(
            student, decoded, parity=parity, parity_after=self.parity_after, step=self._steps(TRANSFORMERS, len(places))
        )
        write_answers(folder / ANSWERS, answers)

    def _ask_pair(self, files: PairFiles, own: Images, folder: Path) -> None:
        write_run(folder / ANSWERS, self._run(files, own) if own.test or own.validation else PairRun())

    def _ask_base(self, own: Images, folder: Path) -> None:
        """Nothing is fitted on its answers and nothing is held against them, so that the test images are enough."""
        only_test = replace(own, validation=[], parity=[])
        write_run(folder / ANSWERS, self._run(self.base_pair, only_test) if own.test else PairRun())

    def _run(self, files: PairFiles, own: Images) -> PairRun:
        text, mmproj = self.ggufs / files.text, self.ggufs / files.mmproj
        question, context_tokens = self.question, self.context_tokens
        clock = time.monotonic()
        with Pair(self.toolchain, text, mmproj, question, threads=self.threads, context_tokens=context_tokens) as pair:
            started = time.monotonic() - clock
            test, both = _pngs(own.test), _pngs([*own.test, *own.validation])
            free = [] if self.kind.closed else test
            step = self._steps(files.name, len(both) + len(free))
            replies = _ask_all(pair.ask, both, step)
            freely = _ask_all(pair.ask_freely, free, lambda done: step(len(both) + done))
            blind = _ask_blind(pair, own.test) if files.shipped else []
            first = self._parity_steps(pair, own) if files.reference else []
            text_ids = [*pair.text_ids(), *map(pair.ids, self._asked_text())]
        exact = self._ask_exact(text, mmproj, own) if files.reference and own.parity else []
        latency = {"start_s": round(started, 3), "threads": pair_threads(text, mmproj, self.threads)}
        return PairRun(replies[: len(test)], replies[len(test) :], blind, freely, text_ids, first, exact, latency)

    def _asked_text(self) -> list[str]:
        """What is asked beside the prompt's own texts: where parity is measured, if that is not at its end."""
        after = self.parity_after
        return [self.question.prompt.partition(MEDIA)[2] + after] if after else []

    def _parity_steps(self, pair: Pair, own: Images) -> Steps:
        images, after = [own.test[place].image_png for place in own.parity], self.parity_after
        if after is None:
            return [pair.first_step(image) for image in images]
        return [pair.next_step(image, after, least_nats=LEAST_NATS - SPARE_NATS) for image in images]

    def _ask_exact(self, text: Path, mmproj: Path, own: Images) -> Steps:
        """The same by a float32 copy of the text weights, which holds bf16 exactly."""
        copy = self.work.scratch / f"text-{EXACT}.gguf"
        self.toolchain.run("llama-quantize", ["--allow-requantize", str(text), str(copy), EXACT, str(self.threads)])
        with Pair(
            self.toolchain, copy, mmproj, self.question, threads=self.threads, context_tokens=self.context_tokens
        ) as pair:
            steps = self._parity_steps(pair, own)
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
    return None if shares is None else _join(shares, asking, pairs(work.recipe))


def _join(shares: Sequence[Share], asking: Asking, files: Sequence[PairFiles]) -> Answers:
    from pocketvlm.stages.evaluation.hf_scoring import join_answers, read_answers

    kept = [[folder / ANSWERS for folder in share.folders] for share in shares]
    test, validation, parity = asking.images.test, asking.images.validation, asking.images.parity
    return Answers(
        hf=join_answers([read_answers(paths[0]) for paths in kept], len(test)),
        runs={
            pair.name: join([read_run(paths[number]) for paths in kept], len(test), len(validation), parity)
            for number, pair in enumerate(files, start=1)
        },
        base=join([read_run(paths[-1]) for paths in kept], len(test), 0, []),
        share_seconds=[share.seconds for share in shares],
        question=asking.question,
        parity_after=asking.parity_after,
    )


def _ask_all(ask: Callable[[bytes], Reply], images: Sequence[bytes], step: Callable[[int], None]) -> list[Reply]:
    """Answers to all images, in order; `step` is told how many are done."""
    replies = []
    for image in images:
        replies.append(ask(image))
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
