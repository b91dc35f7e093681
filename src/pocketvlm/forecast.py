"""What the labeller will do, before it asks anybody: images, calls, money."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pocketvlm.run_file import Recipe
from pocketvlm.sources.open import open_source
from pocketvlm.sources.record import Context
from pocketvlm.teacher.estimate import estimate
from pocketvlm.teacher.question import TeacherQuestion


@dataclass(frozen=True)
class Forecast:
    """For `pocketvlm plan`."""

    images: int | None
    """That the dataset will have at most; None where only a server can tell."""
    lines: list[str]


def forecast(recipe: Recipe, folder: Path) -> Forecast:
    """Asks no server. Raises as `open_source` and TeacherQuestion do."""
    labeller, task = recipe.labeller, recipe.task
    source = open_source(labeller.source, Context(folder, list(task.classes), labelled=labeller.teacher is None))
    there = source.expected()
    caps = [number for number in (there, labeller.max_images) if number is not None]
    looked_at = min(caps) if caps else None
    kept = looked_at
    if labeller.per_class is not None:
        wanted = labeller.per_class * len(task.classes)
        kept = wanted if looked_at is None else min(wanted, looked_at)
    lines = source.plan_lines()
    if kept != looked_at:
        lines.append(f"images are looked at until each class has {labeller.per_class}: {kept} of "
                     f"{'an unknown number' if looked_at is None else looked_at}")  # fmt: skip
    named = {"teacher": labeller.teacher, "second_teacher": labeller.second_teacher}
    teachers = {name: teacher for name, teacher in named.items() if teacher is not None}
    for name, teacher in teachers.items():
        question = TeacherQuestion(teacher, task, folder, where=f"run.labeller.{name}")
        if kept is None:
            lines.append(f"teacher {teacher.model}, {teacher.way}: as many calls as the source has images, times {teacher.votes}")
        else:
            lines += estimate(teacher, len(question.system) + len(question.user), kept, kept if looked_at is None else looked_at)
    if labeller.max_cost_usd is not None:
        lines.append(f"no call is begun once {labeller.max_cost_usd:g} US dollars are spent")
    return Forecast(kept, lines if teachers else [*lines, "no teacher, no cost"])
