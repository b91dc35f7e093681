"""What of a run file cannot work with its student: a line each, with the key's path, what is wrong and what to do."""

from __future__ import annotations

from collections.abc import Iterator

from pocketvlm.llamacpp.sizes import unfit
from pocketvlm.plan.facts import StudentFacts
from pocketvlm.plan.training import training_problems
from pocketvlm.run_file import Recipe
from pocketvlm.student.families import lora_targets
from pocketvlm.student.tasks import kind_of
from pocketvlm.student.variants import every_variant


def problems(recipe: Recipe, facts: StudentFacts) -> Iterator[str]:
    """All of them."""
    yield from (f"run.device.{problem}" for problem in facts.device_problems)
    yield from (f"run.task.{problem}" for problem in kind_of(recipe.task).problems())
    if facts.layout is not None:
        yield from _length_problems(recipe, facts)
    for kind in recipe.quantiser.types:
        if odd := unfit(facts.text_shapes().values(), kind):
            yield f"run.quantiser.types: {odd} matrices have rows that are no multiple of 32, which {kind} needs; use f16"
    yield from _target_problems(recipe, facts)
    yield from training_problems(recipe, facts)


def _length_problems(recipe: Recipe, facts: StudentFacts) -> Iterator[str]:
    """Prompt and answer must fit the student, and so must the longest of each variant, which the phone never asks."""
    key = f"run.device.{facts.family.tokens_key}"
    tokens = len(facts.encoder.prompt(facts.layout)) + recipe.device.max_new_tokens
    if tokens > facts.positions:
        yield (f"{key}: prompt and answer take {tokens} tokens and the student has "
               f"{facts.positions} positions; set a smaller one or shorten run.task.question")  # fmt: skip
    for place in range(len(recipe.task.questions)):
        tokens, label = max(
            (len(facts.encoder.sample(facts.layout, answer, question).ids), label)
            for label, question, answer in every_variant(recipe.task, place)
        )
        # The label of an empty one is not known yet; no answer is longer than the phone may write.
        tokens, whose = (tokens, f" for {label!r}") if label else (tokens + recipe.device.max_new_tokens, "")
        if tokens > facts.positions:
            yield (f"run.task.questions[{place}]: image, question and answer{whose} take {tokens} tokens and the student "
                   f"has {facts.positions} positions; shorten it, or set a smaller {key}")  # fmt: skip


def _target_problems(recipe: Recipe, facts: StudentFacts) -> Iterator[str]:
    geometry = facts.geometry
    layers = facts.family.linear_layers(facts.shapes, tied_head=geometry.tied_head)
    for i, phase in enumerate(recipe.trainer.phases):
        _, wrong = lora_targets(facts.family, layers, phase, tied_head=geometry.tied_head)
        yield from (f"run.trainer.phases[{i}].{problem}" for problem in wrong)
