"""What a run file will do, stage by stage, and what cannot work: said before anything is paid for.

`check` raises RunFileError with one line for each problem (key path, what is wrong, what to do); `plan` adds a text of
what each stage will do and what is already in the store.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pocketvlm.artifacts.artifact import Artifact, find
from pocketvlm.artifacts.dataset import SPLITS
from pocketvlm.artifacts.open import open_store
from pocketvlm.artifacts.run_record import run_id
from pocketvlm.artifacts.store import Store
from pocketvlm.environment import Environment
from pocketvlm.errors import RunFileError
from pocketvlm.forecast import forecast
from pocketvlm.llamacpp.sizes import estimate_mb, unfit
from pocketvlm.run_file import Recipe, RunFile, refuse_not_available
from pocketvlm.stages.stage import STAGES, load_stage, stage_id
from pocketvlm.student import base, pixels
from pocketvlm.student.families import PARTS, Geometry, lora_targets, read_geometry
from pocketvlm.student.grammar import prefix_clashes
from pocketvlm.student.prompt import MAX_GRID_SIDE, PromptEncoder, answer_text, prompt_of, prompt_text
from pocketvlm.student.variants import every_variant, variants_per_image


@dataclass(frozen=True)
class StudentFacts:
    """What the base checkpoint says about itself."""

    geometry: Geometry
    shapes: dict[str, tuple[int, ...]]
    """Tensor name -> shape."""
    positions: int
    encoder: PromptEncoder

    def parameters(self, parts: tuple[str, ...] = PARTS) -> int:
        """Weights of the parts."""
        family = self.geometry.family
        return sum(math.prod(shape) for name, shape in self.shapes.items() if family.part_of(name) in parts)


def check(run_file: RunFile, environment: Environment) -> StudentFacts:
    """Refuses what cannot work. Raises NotAvailableYet, RunFileError and UserError; returns what it learnt."""
    recipe = run_file.run
    refuse_not_available(recipe)
    load_stage("labeller").settings(recipe, run_file.folder)
    with tempfile.TemporaryDirectory() as scratch:
        facts = _student_facts(recipe, run_file.folder, Path(scratch), environment)
    if problems := list(_problems(recipe, facts)):
        raise RunFileError("\n".join(problems))
    return facts


def plan(run_file: RunFile, environment: Environment) -> str:
    """The text that `pocketvlm plan` prints. Raises as `check` does."""
    facts = check(run_file, environment)
    recipe = run_file.run
    store = open_store(environment)
    found = _found(run_file, store)
    ahead = forecast(recipe, run_file.folder, environment)
    images = _images(run_file, found["labeller"], ahead.images)
    lines = [f"run {run_id(recipe)}  ->  release {recipe.name} in {store.url}", ""]
    texts = {
        "labeller": _labeller(recipe, images, ahead.lines, found["labeller"]),
        "trainer": _trainer(recipe, facts, images["train"] if images else None),
        "merger": [f"{len(facts.shapes)} tensors, {2 * facts.parameters() / 1e6:.1f} MB as bf16"],
        "quantiser": _quantiser(recipe, facts),
        "evaluator": _evaluator(recipe, images["test"] if images else None),
    }
    for stage in STAGES:
        artifact = found[stage]
        state = f"already done: {artifact.kind}/{artifact.id}" if artifact else "to do"
        lines.append(f"{stage:<10} {state}")
        lines += [f"{'':<10} {text}" for text in texts[stage]]
    return "\n".join(lines)


def _student_facts(recipe: Recipe, folder: Path, scratch: Path, environment: Environment) -> StudentFacts:
    base.identity(recipe.student, folder)
    checkpoint = base.fetch_base(recipe, folder, scratch, environment, weights=False)
    geometry = read_geometry(checkpoint)
    shapes, positions = base.read_shapes(recipe.student, checkpoint, environment)
    from pocketvlm.student.checkpoint import load_tokenizer

    encoder = PromptEncoder(
        load_tokenizer(checkpoint), prompt=prompt_text(recipe.task), tokens_per_tile=geometry.tokens_per_tile
    )
    return StudentFacts(geometry, shapes, positions, encoder)


def _problems(recipe: Recipe, facts: StudentFacts) -> Iterator[str]:
    tile, edge = facts.geometry.tile_px, recipe.device.longest_edge_px
    if edge % tile or edge // tile > MAX_GRID_SIDE:
        fit = ", ".join(str(tile * n) for n in range(1, MAX_GRID_SIDE + 1))
        yield f"run.device.longest_edge_px: {edge} is no tile budget of this student (tiles of {tile} px); use one of {fit}"
    for shorter, longer in prefix_clashes(list(recipe.task.classes)):
        yield (f"run.task.classes: {shorter!r} is the beginning of {longer!r}, so the end of the answer would be a guess; "
               "rename one")  # fmt: skip
    longest = max(recipe.task.classes, key=lambda name: len(facts.encoder.answer(answer_text(name))))
    needed = len(facts.encoder.answer(answer_text(longest)))
    if recipe.device.max_new_tokens < needed:
        yield (f"run.device.max_new_tokens: {recipe.device.max_new_tokens} is too small for the answer {longest!r}, which "
               f"takes {needed} tokens with its end; set at least {needed}")  # fmt: skip
    if not edge % tile and edge // tile <= MAX_GRID_SIDE:
        tokens = len(facts.encoder.prompt(_largest_grid(recipe, facts.geometry))) + recipe.device.max_new_tokens
        if tokens > facts.positions:
            yield (f"run.device.longest_edge_px: prompt and answer take {tokens} tokens and the student has "
                   f"{facts.positions} positions; set a smaller budget or shorten run.task.question")  # fmt: skip
        yield from _variant_problems(recipe, facts)
    for kind in recipe.quantiser.types:
        if odd := unfit(_text_shapes(facts).values(), kind):
            yield f"run.quantiser.types: {odd} matrices have rows that are no multiple of 32, which {kind} needs; use f16"
    yield from _target_problems(recipe, facts)


def _variant_problems(recipe: Recipe, facts: StudentFacts) -> Iterator[str]:
    """A variant must fit the student, with the label that makes it longest; what the phone may generate does not concern it."""
    cut = _largest_grid(recipe, facts.geometry)
    for place in range(len(recipe.task.questions)):
        tokens, label = max(
            (len(facts.encoder.sample(cut, answer_text(answer), prompt_of(question)).ids), label)
            for label, question, answer in every_variant(recipe.task, place)
        )
        if tokens > facts.positions:
            yield (f"run.task.questions[{place}]: image, question and answer for {label!r} take {tokens} tokens and the student "
                   f"has {facts.positions} positions; shorten it, or set a smaller run.device.longest_edge_px")  # fmt: skip


def _target_problems(recipe: Recipe, facts: StudentFacts) -> Iterator[str]:
    geometry = facts.geometry
    layers = geometry.family.linear_layers(facts.shapes, tied_head=geometry.tied_head)
    for i, phase in enumerate(recipe.trainer.phases):
        _, problems = lora_targets(geometry.family, layers, phase, tied_head=geometry.tied_head)
        yield from (f"run.trainer.phases[{i}].{problem}" for problem in problems)


def _largest_grid(recipe: Recipe, geometry: Geometry) -> pixels.Grid:
    """The grid of a square image: the largest that the budget gives."""
    side = recipe.device.canvas_px or recipe.device.longest_edge_px
    return pixels.grid(side, side, tile_px=geometry.tile_px, longest_edge_px=recipe.device.longest_edge_px)


def _text_shapes(facts: StudentFacts) -> dict[str, tuple[int, ...]]:
    return {name: shape for name, shape in facts.shapes.items() if facts.geometry.family.part_of(name) == "text"}


def _found(run_file: RunFile, store: Store) -> dict[str, Artifact | None]:
    """What each stage would find finished; behind the first stage that is to do, nothing is known yet."""
    found: dict[str, Artifact | None] = {}
    for stage in STAGES:
        inputs = {other: found[other] for other in load_stage(stage).INPUTS}
        if any(artifact is None for artifact in inputs.values()):
            found[stage] = None
            continue
        ids = {other: artifact.id for other, artifact in inputs.items() if artifact}
        found[stage] = find(store, load_stage(stage).KIND, stage_id(stage, run_file, ids))
    return found


def _images(run_file: RunFile, dataset: Artifact | None, expected: int | None) -> dict[str, int] | None:
    """Images by split: counted where the dataset is there, else those expected by the split's shares; None: nobody knows yet."""
    if dataset:
        return {split: sum(dataset.facts["counts"][split].values()) for split in SPLITS}
    split = run_file.run.labeller.split
    return None if expected is None else {name: round(expected * getattr(split, name)) for name in SPLITS}


def _labeller(recipe: Recipe, images: dict[str, int] | None, ahead: list[str], dataset: Artifact | None) -> list[str]:
    lines = [] if dataset else ahead
    canvas = f"letterboxed to {recipe.device.canvas_px} px" if recipe.device.canvas_px else "as they are"
    if images is None:
        return [f"images of source {recipe.labeller.source.kind}, {canvas}; how many is known when they are there", *lines]
    shares = ", ".join(f"{count} {split}" for split, count in images.items())
    most = "up to " if dataset is None and recipe.labeller.teacher else ""
    return [f"{most}{sum(images.values())} images of source {recipe.labeller.source.kind}, {canvas}: {shares}", *lines]


def _trainer(recipe: Recipe, facts: StudentFacts, train_images: int | None) -> list[str]:
    cut = _largest_grid(recipe, facts.geometry)
    visual = cut.tiles * facts.geometry.tokens_per_tile
    prompt = len(facts.encoder.prompt(cut))
    family = facts.geometry.family
    exact = "pixels and tokens" + (" exactly" if family.device_exact else " not proven to be") + " as on the phone"
    lines = [
        f"{family.name}, {facts.parameters() / 1e6:.2f} M parameters, {recipe.student.model}; {exact}",
        f"{visual} visual tokens an image ({cut.rows}x{cut.cols} tiles and the overview), {prompt} tokens a prompt",
    ]
    more = variants_per_image(recipe.task)
    pairs = train_images and train_images * (1 + more)
    if more:
        counted = "pairs" if pairs is None else f"{pairs} pairs"
        lines.append(f"{counted} of question and answer: with each image the shipped question, and {more} of "
                     f"{len(recipe.task.questions)} more")  # fmt: skip
    steps = pairs and math.ceil(pairs / recipe.trainer.batch_size)
    for i, phase in enumerate(recipe.trainer.phases, start=1):
        total = "in steps" if steps is None else f"= {math.ceil(steps * phase.epochs)} steps"
        tuned = (
            f"{facts.parameters(tuple(phase.train)) / 1e6:.2f} M"
            if phase.method == "full"
            else f"LoRA of rank {phase.rank} on"
        )
        cached = "" if "vision" in phase.train else ", vision features computed once"
        lines.append(f"phase {i}: {phase.method}, {tuned} {' + '.join(phase.train)}, {phase.epochs:g} epochs {total} of "
                     f"{recipe.trainer.batch_size} at {phase.learning_rate:g}{cached}")  # fmt: skip
    return lines


def _quantiser(recipe: Recipe, facts: StudentFacts) -> list[str]:
    kinds = dict.fromkeys(["bf16", *recipe.quantiser.types])
    sizes = ", ".join(f"{kind} {estimate_mb(_text_shapes(facts), kind):.1f} MB" for kind in kinds)
    bits = {"f16": 16, "q8_0": 8.5}[recipe.quantiser.mmproj]
    vision = facts.parameters(("vision", "connector")) * bits / 8 / 1e6
    return [f"text: about {sizes} (MB = 10^6 bytes); mmproj: {recipe.quantiser.mmproj}, about {vision:.1f} MB"]


def _evaluator(recipe: Recipe, test_images: int | None) -> list[str]:
    images = "all" if test_images is None else min(test_images, recipe.evaluator.max_images or test_images)
    gates = ", ".join(
        f"{name} {value:g}" for name, value in recipe.evaluator.gates.model_dump().items() if value is not None
    )
    pairs = len({("bf16", "f16"), *((kind, recipe.quantiser.mmproj) for kind in recipe.quantiser.types)})
    return [
        f"{pairs} pairs on llama.cpp, {images} held-out images each, against transformers and the untrained base",
        f"gates: {gates}",
    ]
