"""What the labeller will do, before it asks anybody: images, calls, money."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pocketvlm.environment import Environment
from pocketvlm.errors import DataError
from pocketvlm.run_file import Labeller, Recipe
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


def forecast(recipe: Recipe, folder: Path, environment: Environment) -> Forecast:
    """Asks no server. Raises as `open_source` and TeacherQuestion do; DataError for a source without images."""
    labeller, task = recipe.labeller, recipe.task
    context = Context(folder, list(task.classes), labeller.teacher is None, environment, fields=task.fields)
    source = open_source(labeller.source, context)
    there = source.expected()
    caps = [number for number in (there, labeller.max_images) if number is not None]
    looked_at = min(caps) if caps else None
    if looked_at == 0:
        raise DataError("run.labeller.source: has no images; put images there, or name another source")
    kept = looked_at
    if labeller.per_class is not None:
        wanted = labeller.per_class * len(task.classes)
        kept = wanted if looked_at is None else min(wanted, looked_at)
    lines = source.plan_lines()
    lines += _per_class_lines(labeller, len(task.classes), looked_at)
    named = {"teacher": labeller.teacher, "second_teacher": labeller.second_teacher}
    teachers = {name: teacher for name, teacher in named.items() if teacher is not None}
    for name, teacher in teachers.items():
        if teacher.base_url is None and not getattr(environment, key_of := f"{name}_key"):
            variable = Environment.model_fields[key_of].validation_alias
            lines.append(f"{variable} is not set; the labeller needs it")
        question = TeacherQuestion(teacher, task, folder, where=f"run.labeller.{name}")
        if kept is None:
            lines.append(f"teacher {teacher.model}, {teacher.way}: as many calls as the source has images, times {teacher.votes}")
        else:
            lines += estimate(teacher, len(question.system) + len(question.user), kept, kept if looked_at is None else looked_at)
    if labeller.max_cost_usd is not None:
        lines.append(f"no call is begun once {labeller.max_cost_usd:g} US dollars are spent")
    return Forecast(kept, lines if teachers else [*lines, "no teacher, no cost"])


def _per_class_lines(labeller: Labeller, classes: int, looked_at: int | None) -> list[str]:
    if labeller.per_class is None:
        return []
    wanted = labeller.per_class * classes
    if looked_at is not None and wanted > looked_at:
        return [f"per_class {labeller.per_class} for {classes} classes are {wanted} images, and at most {looked_at} are looked "
                "at: classes stay smaller"]  # fmt: skip
    return [f"images are looked at until each class has {labeller.per_class}: {wanted} of "
            f"{'an unknown number' if looked_at is None else looked_at}"]  # fmt: skip
