"""Numbers of `extract`, field by field. Pure: labels and answers are the compact JSON of the fields, None what cannot be read.

**Lists** are compared as sets of texts. A text is normalised by NFKC, case folding, and one space for each run of white space,
none at its ends; then empty texts and repetitions fall away. Nothing is stemmed: `apples` is not `apple`. The raw numbers leave
out all of that but the repetitions. Micro: precision, recall and F1 over the texts of all images. Macro: the mean of each
image's own F1.

**Free texts** are compared by chrF (Popović 2015), character n-grams up to 6, recall counted twice as much as precision, as the
package sacrebleu computes it for one sentence; equal texts have 1.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pocketvlm.report.results import FieldRow, ListScore
from pocketvlm.run_file import ExtractField

DIGITS = 6
Values = Sequence[Any]
"""Of one field, image by image; None for an answer that cannot be read."""


def field_rows(fields: Mapping[str, ExtractField], labels: Sequence[str], answers: Sequence[str | None]) -> list[FieldRow]:
    """A row for each field, in their order."""
    wanted = [json.loads(label) for label in labels]
    said = [None if answer is None else json.loads(answer) for answer in answers]
    rows = []
    for name, field in fields.items():
        there = [label[name] for label in wanted]
        named = [None if answer is None else answer[name] for answer in said]
        right = sum(a is not None and a == b for a, b in zip(named, there, strict=True))
        listed, free = field.type == "list", is_free_text(field)
        rows.append(FieldRow(
            name=name, type=field.type, accuracy=round(right / len(there), DIGITS),
            list=list_score([there], [named], normalised) if listed else None,
            list_raw=list_score([there], [named], str) if listed else None,
            similarity=round(similarity(there, named), DIGITS) if free else None,
        ))  # fmt: skip
    return rows


def is_free_text(field: ExtractField) -> bool:
    """Whether a field's text is compared by similarity."""
    return field.type == "string" and not field.values


def all_lists(fields: Mapping[str, ExtractField], labels: Sequence[str], answers: Sequence[str | None]) -> float | None:
    """F1 over the normalised texts of all list fields; None without such a field."""
    names = [name for name, field in fields.items() if field.type == "list"]
    if not names:
        return None
    wanted = [[json.loads(label)[name] for label in labels] for name in names]
    said = [[None if answer is None else json.loads(answer)[name] for answer in answers] for name in names]
    return list_score(wanted, said, normalised).f1


def normalised(text: str) -> str:
    """See the module."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def list_score(labels: Sequence[Values], answers: Sequence[Values], of: Callable[[str], str]) -> ListScore:
    """Scores over one field or several, of texts as `of` makes them."""
    found = there_total = named_total = unread = 0
    images: list[float] = []
    for there_texts, named_texts in zip(labels, answers, strict=True):
        for label, answer in zip(there_texts, named_texts, strict=True):
            there = {of(text) for text in label} - {""}
            named = {of(text) for text in answer or []} - {""}
            common = len(there & named)
            found, there_total, named_total = found + common, there_total + len(there), named_total + len(named)
            unread += answer is None
            images.append(0.0 if answer is None else _f1(common, len(there), len(named)))
    if unread and not there_total + named_total:  # nothing to find is found by whoever says so
        return ListScore(precision=0.0, recall=0.0, f1=0.0, f1_macro=round(sum(images) / len(images), DIGITS))
    return ListScore(
        precision=round(found / named_total if named_total else float(there_total == 0), DIGITS),
        recall=round(found / there_total if there_total else 1.0, DIGITS),
        f1=round(_f1(found, there_total, named_total), DIGITS), f1_macro=round(sum(images) / len(images), DIGITS),
    )  # fmt: skip


def _f1(common: int, there: int, named: int) -> float:
    return 2 * common / (there + named) if there + named else 1.0


def similarity(labels: Values, answers: Values) -> float:
    """Mean chrF of the answers, in [0, 1]; 0 for one that cannot be read."""
    from sacrebleu.metrics.chrf import CHRF

    metric = CHRF()
    return sum(
        0.0 if answer is None else 1.0 if answer == label else metric.sentence_score(answer, [label]).score / 100
        for label, answer in zip(labels, answers, strict=True)
    ) / len(labels)


def similarity_name() -> str:
    """Metric, package and version."""
    from importlib.metadata import version

    return f"chrF2 by sacrebleu {version('sacrebleu')}"
