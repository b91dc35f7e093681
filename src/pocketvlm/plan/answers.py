"""The longest answer that the student has to learn, in tokens: as far as the task, the dataset or its source can tell."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from pocketvlm.artifacts.artifact import Artifact
from pocketvlm.plan.facts import StudentFacts
from pocketvlm.run_file import Recipe
from pocketvlm.sources.open import open_source
from pocketvlm.sources.record import Context
from pocketvlm.student.tasks import kind_of


def longest_answer(recipe: Recipe, folder: Path, facts: StudentFacts, dataset: Artifact | None) -> str | None:
    """Its text; None where nobody knows yet, because a teacher or a server has to be asked first.

    The dataset knows its longest answers by their characters. Without it, a file of labelled records beside the run file is
    read. The trainer counts all answers before its first step in any case.
    """
    if known := kind_of(recipe.task).longest(facts.answer_tokens):
        return known
    if dataset is not None:
        return max(dataset.facts.get("longest_answers", []), key=facts.answer_tokens, default=None)
    return max(_of_records(recipe, folder), key=facts.answer_tokens, default=None)


def _of_records(recipe: Recipe, folder: Path) -> Iterable[str]:
    """Answers of a labelled list of local records; of all other sources, labels come later."""
    labeller, kind = recipe.labeller, kind_of(recipe.task)
    if labeller.teacher is not None or labeller.source.kind != "records" or kind.classes:
        return
    context = Context(folder, [], True, fields=recipe.task.fields)
    for record in open_source(labeller.source, context):
        if record.label:
            yield kind.answer(record.label)


def answer_problem(answer: str, facts: StudentFacts, most: int) -> str | None:
    """What to say of an answer that the phone has too few tokens for; None if it fits."""
    needed = facts.answer_tokens(answer)
    if needed <= most:
        return None
    return (f"run.device.max_new_tokens: {most} is too small for the answer {answer!r}, which takes {needed} tokens with its "
            f"end; set at least {needed}")  # fmt: skip
