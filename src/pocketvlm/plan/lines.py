"""What a run file will do, stage by stage, and what cannot work: said before anything is paid for.

`check` raises RunFileError with one line for each problem (plan/problems.py); `plan` adds a text of what each stage will do
and what is already in the store.
"""

from __future__ import annotations

import math

from pocketvlm.artifacts.artifact import Artifact, find
from pocketvlm.artifacts.dataset import SPLITS
from pocketvlm.artifacts.evaluated import report_of, run_named
from pocketvlm.artifacts.open import open_store
from pocketvlm.artifacts.run_record import run_id
from pocketvlm.artifacts.store import Store
from pocketvlm.environment import Environment
from pocketvlm.errors import RunFileError
from pocketvlm.forecast import forecast
from pocketvlm.llamacpp.sizes import estimate_mb
from pocketvlm.plan.answers import answer_problem, longest_answer
from pocketvlm.plan.facts import StudentFacts, student_facts
from pocketvlm.plan.problems import problems
from pocketvlm.plan.training import memory_lines
from pocketvlm.run_file import Phase, Recipe, RunFile
from pocketvlm.stages.stage import STAGES, load_stage, stage_id
from pocketvlm.student.variants import variants_per_image


def check(run_file: RunFile, environment: Environment) -> None:
    """Refuses what cannot work. Raises RunFileError and UserError."""
    _checked(run_file, environment)


def _checked(run_file: RunFile, environment: Environment) -> tuple[StudentFacts, Store, dict[str, Artifact | None], str | None]:
    """What was learnt on the way: of the student, of what is in the store, and the longest answer."""
    recipe = run_file.run
    store = open_store(environment)
    found = _found(run_file, store)
    facts = student_facts(recipe, run_file.folder, environment, store)
    wrong = list(problems(recipe, facts))
    longest = longest_answer(recipe, run_file.folder, facts, found["labeller"])
    if longest is not None and (line := answer_problem(longest, facts, recipe.device.max_new_tokens)):
        wrong.append(line)
    if wrong:
        raise RunFileError("\n".join(wrong))
    return facts, store, found, longest


def plan(run_file: RunFile, environment: Environment) -> str:
    """The text that `pocketvlm plan` prints. Raises as `check` does."""
    facts, store, found, longest = _checked(run_file, environment)
    recipe = run_file.run
    ahead = forecast(recipe, run_file.folder, environment)
    images = _images(run_file, found["labeller"], ahead.images)
    lines = [f"run {run_id(recipe)}  ->  release {recipe.name} in {store.url}", ""]
    texts = {
        "labeller": _labeller(recipe, images, ahead.lines, found["labeller"]),
        "trainer": [*_student(recipe, facts, longest), *_phases(recipe, facts, images)],
        "merger": [f"{len(facts.shapes)} tensors, {2 * facts.parameters() / 1e6:.1f} MB as bf16"],
        "quantiser": _quantiser(recipe, facts),
        "evaluator": [*_evaluator(recipe, images["test"] if images else None), *_beside(recipe, store)],
    }
    for stage in STAGES:
        artifact = found[stage]
        state = f"already done: {artifact.kind}/{artifact.id}" if artifact else "to do"
        lines.append(f"{stage:<10} {state}")
        lines += [f"{'':<10} {text}" for text in texts[stage]]
    return "\n".join(lines)


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


def _student(recipe: Recipe, facts: StudentFacts, longest: str | None) -> list[str]:
    family, layout = facts.family, facts.layout
    visual = facts.encoder.image(layout).count(facts.encoder.image_id)
    prompt = len(facts.encoder.prompt(layout))
    exact = "pixels and tokens" + (" exactly" if family.device_exact else " not proven to be") + " as on the phone"
    most = recipe.device.max_new_tokens
    answers = (f"the longest answer takes {facts.answer_tokens(longest)} of {most} tokens" if longest is not None else
               f"how long answers are is known with the labels; training refuses one of more than {most} tokens")  # fmt: skip
    return [
        f"{family.name}, {facts.parameters() / 1e6:.2f} M parameters, {recipe.student.model}; {exact}",
        facts.base.line,
        f"{visual} visual tokens an image ({layout.words}), {prompt} tokens a prompt; {answers}",
    ]


def _phases(recipe: Recipe, facts: StudentFacts, images: dict[str, int] | None) -> list[str]:
    lines = []
    more = variants_per_image(recipe.task)
    pairs = images["train"] * (1 + more) if images else None
    if more:
        counted = "pairs" if pairs is None else f"{pairs} pairs"
        lines.append(f"{counted} of question and answer: with each image the shipped question, and {more} of "
                     f"{len(recipe.task.questions)} more")  # fmt: skip
    steps = pairs and math.ceil(pairs / recipe.trainer.batch_size)
    for i, phase in enumerate(recipe.trainer.phases, start=1):
        total = "in steps" if steps is None else f"= {math.ceil(steps * phase.epochs)} steps"
        tuned = (f"{facts.parameters(tuple(phase.train)) / 1e6:.2f} M" if phase.method == "full" else
                 f"LoRA of rank {phase.rank}, alpha {phase.alpha:g}, dropout {phase.dropout:g} on")  # fmt: skip
        whole = f" and all of {', '.join(phase.full)}" if phase.full else ""
        cached = "" if set(phase.train) & set(facts.family.features_of) else ", vision features computed once"
        lines.append(f"phase {i}: {phase.method}, {tuned} {' + '.join(phase.train)}{whole}, {phase.epochs:g} epochs {total} of "
                     f"{recipe.trainer.batch_size} at {_rates(phase)}{cached}")  # fmt: skip
    return lines + memory_lines(recipe, facts, images)


def _rates(phase: Phase) -> str:
    parts = "".join(f", {part} {rate:g}" for part, rate in phase.part_learning_rates.items())
    warmup = f" after {phase.warmup_steps} steps" if phase.warmup_steps else (
        f" after {phase.warmup_share:.0%} of the steps" if phase.warmup_share else "")  # fmt: skip
    decay = f", weight decay {phase.weight_decay:g}" if phase.weight_decay else ""
    return f"{phase.learning_rate:g}{parts} ({phase.schedule}{warmup}{decay})"


def _quantiser(recipe: Recipe, facts: StudentFacts) -> list[str]:
    kinds = dict.fromkeys(["bf16", *recipe.quantiser.types])
    sizes = ", ".join(f"{kind} {estimate_mb(facts.text_shapes(), kind):.1f} MB" for kind in kinds)
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
        f"{pairs + 1} pairs on llama.cpp, one of them the base's, {images} held-out images each, and transformers",
        f"gates: {gates}, and what holds by default of the others",
    ]


def _beside(recipe: Recipe, store: Store) -> list[str]:
    """No problem yet where the other run is not there: it may end before this one's evaluator begins."""
    named = recipe.evaluator.beside
    if named is None:
        return []
    run = run_named(store, named)
    there = run is not None and report_of(store, run) is not None
    missing = "" if there else f": no finished run or release of {store.url} yet, and the evaluator refuses to begin without it"
    return [f"beside {named}{missing}"]
