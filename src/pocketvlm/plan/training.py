"""What training will take of memory, phase by phase, and what of the trainer's block cannot work with the student."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from pocketvlm.plan.facts import StudentFacts
from pocketvlm.run_file import Phase, Recipe
from pocketvlm.student.families import full_modules
from pocketvlm.student.memory import HELD_BYTES, Pass, Passes, choose_passes, feature_width
from pocketvlm.student.tasks import kind_of

FEATURE_BYTES = 2
"""Of a number of the features, which are kept in the precision of the vision tower."""


def training_problems(recipe: Recipe, facts: StudentFacts) -> Iterator[str]:
    """A line each, with the key's path, what is wrong and what to do."""
    kind, settings = kind_of(recipe.task), recipe.trainer
    if settings.sampling == "balanced" and not kind.classes:
        yield "run.trainer.sampling: balanced needs classes, which this task has not; use natural"
    modules = [name.removesuffix(".weight") for name in facts.shapes if name.endswith(".weight")]
    if facts.geometry.tied_head:
        modules.append("lm_head")
    for i, phase in enumerate(settings.phases):
        _, wrong = full_modules(facts.family, modules, phase)
        yield from (f"run.trainer.phases[{i}].{problem}" for problem in wrong)
    if settings.memory_gb is not None and facts.layout is not None:
        for i, phase in enumerate(settings.phases):
            passes = passes_of(recipe, facts, phase, None)
            if not passes.fits:
                yield (f"run.trainer.memory_gb: phase {i + 1} takes {passes.words}; raise memory_gb, lower micro_batch_size, set "
                       "gradient_checkpointing: true, or use method: lora or fewer parts in train")  # fmt: skip


def memory_lines(recipe: Recipe, facts: StudentFacts, images: Mapping[str, int] | None) -> list[str]:
    """What `plan` prints of memory: a line for each phase. `images` has their number by split, where it is known."""
    settings = recipe.trainer
    lines = [f"phase {i}: {passes_of(recipe, facts, phase, images).words}" for i, phase in enumerate(settings.phases, 1)]
    if settings.base_bits != 16:
        lines.append(f"the base in {settings.base_bits} bits: needs CUDA and the package bitsandbytes, and is refused elsewhere")
    return lines


def passes_of(recipe: Recipe, facts: StudentFacts, phase: Phase, images: Mapping[str, int] | None) -> Passes:
    """As the trainer chooses them, with the longest answer that the task or the device allows and bf16 where nothing is said."""
    encoder, layout, settings = facts.encoder, facts.layout, recipe.trainer
    longest = kind_of(recipe.task).longest(facts.answer_tokens)
    answer = recipe.device.max_new_tokens if longest is None else facts.answer_tokens(longest)
    visual = encoder.image(layout).count(encoder.image_id)
    # In the layout of one tile and the overview both hold the same pixels, which go through the tower once.
    repeated = 2 if layout.tiles == 2 else 1
    distinct = visual // repeated
    kept = not set(phase.train) & set(facts.family.features_of)
    a_look = distinct * feature_width(facts.family, facts.shapes) * FEATURE_BYTES if kept else (
        layout.tiles // repeated * facts.tile_bytes)  # fmt: skip
    longest_pass = Pass(len(encoder.prompt(layout)) + answer, answer, visual,
                        0 if kept else distinct * facts.geometry.patches_per_token)  # fmt: skip
    return choose_passes(
        facts.family, facts.shapes, settings, phase, longest_pass, tied_head=facts.geometry.tied_head,
        precision="fp32" if settings.precision == "fp32" else "bf16", held_bytes=_held(recipe, images or {}, a_look),
    )  # fmt: skip


def _held(recipe: Recipe, images: Mapping[str, int], a_look: int) -> int:
    """Bytes of both splits on the device; a split that is too large for it stays in a file."""
    augment = recipe.trainer.augment
    looks = {"train": 1 if augment is None else 1 + augment.variants, "validation": 1}
    splits = [images.get(split, 0) * number * a_look for split, number in looks.items()]
    return sum(size for size in splits if size <= HELD_BYTES)
