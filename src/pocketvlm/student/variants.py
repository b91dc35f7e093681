"""More wordings of question and answer for a training image, from the run file and the image's label alone."""

from __future__ import annotations

import hashlib
from typing import Any

from pocketvlm.run_file import Question, Task
from pocketvlm.run_file.template import fill, placeholders


def variants(task: Task, sha256: str, label: str) -> list[tuple[str, str]]:
    """(question, answer) of each of `task.questions` that this image is trained with, besides the shipped question.

    Which ones depends on the image's bytes and the templates' places: the same on every machine, each about equally often,
    and a template that is added at the end replaces few others. `sha256` is that of the original file, in hex.
    """
    return [_filled(task, place, label) for place in _chosen(sha256, len(task.questions), task.questions_per_image)]


def every_variant(task: Task, place: int) -> list[tuple[str, str, str]]:
    """(label, question, answer) of the template at this place for every class; without classes one, of an empty label."""
    return [(label, *_filled(task, place, label)) for label in task.classes or [""]]


def variants_per_image(task: Task) -> int:
    """Length of what `variants` gives."""
    return min(task.questions_per_image, len(task.questions))


def settings(task: Task) -> dict[str, Any]:
    """What of the task determines the variants: part of the dataset's id; empty without `questions`."""
    if not task.questions:
        return {}
    described = any("description" in placeholders(text) for question in task.questions for text in _texts(question))
    return {
        "questions": [question.model_dump(mode="json") for question in task.questions],
        "questions_per_image": variants_per_image(task),
        **({"descriptions": dict(task.classes)} if described else {}),
    }


def _filled(task: Task, place: int, label: str) -> tuple[str, str]:
    values = {"label": label, "description": task.classes.get(label, "").strip(), "classes": ", ".join(task.classes)}
    ask, answer = (fill(text, values) for text in _texts(task.questions[place]))
    return ask, answer.strip()


def _chosen(sha256: str, total: int, wanted: int) -> list[int]:
    """Places of the `wanted` templates with the lowest keys, in their order."""
    by_key = sorted(range(total), key=lambda place: hashlib.sha256(f"{sha256}/{place}".encode()).digest())
    return sorted(by_key[:wanted])


def _texts(question: Question) -> tuple[str, str]:
    return question.ask, question.answer
