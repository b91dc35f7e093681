"""From the images that are kept to the rows of the dataset: copies together, classes in balance, splits, Parquet."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from pocketvlm.artifacts.dataset import SPLITS, Quarantined, Row, write_split
from pocketvlm.errors import DataError
from pocketvlm.run_file import Recipe
from pocketvlm.stages.labelling.copies import group_copies
from pocketvlm.stages.labelling.field_facts import field_facts, strata
from pocketvlm.stages.labelling.gathering import Gathering
from pocketvlm.stages.labelling.split import assign_splits, order_key
from pocketvlm.stages.stage import Work
from pocketvlm.student.tasks import TaskKind, kind_of
from pocketvlm.student.variants import variants

LONGEST = 16
"""Answers that the dataset remembers by their characters, so that `plan` can count the tokens of the longest."""


def sort_out(gathering: Gathering, recipe: Recipe) -> tuple[list[list[int]], list[Quarantined]]:
    """Groups of copies that are used; and for quarantine: contradicting labels, repeated files, and what is too many."""
    spool, repeats = gathering.spool, gathering.repeats
    records = [[record, *repeats.get(index, [])] for index, record in enumerate(spool.records)]
    labels = [sorted({record.label for record in same}) for same in records]
    groups = [[index] for index in range(len(spool))]
    contradicts: dict[int, int] = {}
    if recipe.labeller.near_copies and len(spool):
        # One file under two labels has a label of its own, which no copy can agree with.
        codes = {label: code for code, label in enumerate(sorted({label for own in labels for label in own}))}
        labels_N = np.array([codes[own[0]] if len(own) == 1 else -1 - index for index, own in enumerate(labels)])
        copies = group_copies(*spool.looks(), labels_N)
        groups, contradicts = copies.groups, copies.contradicts
    refused = []
    for index, (first, *again) in enumerate(records):
        if len(labels[index]) > 1:
            detail = f"{len(again) + 1} files of the same bytes are labelled {_shown(labels[index])}"
            refused += [Quarantined(record.source_id, "contradicting_labels", detail) for record in (first, *again)]
        elif index in contradicts:
            other = contradicts[index]
            detail = f"its copy {spool.records[other].source_id} is labelled {_shown(labels[other])}"
            refused += [Quarantined(record.source_id, "contradicting_labels", detail) for record in (first, *again)]
        else:
            detail = f"same bytes as {first.source_id}"
            refused += [Quarantined(record.source_id, "duplicate", detail) for record in again]
    sound = [index for index in range(len(spool)) if len(labels[index]) == 1 and index not in contradicts]
    kept, too_many = _balanced(gathering, sound, recipe)
    chosen = set(kept)
    groups = [[index for index in group if index in chosen] for group in groups]
    return [group for group in groups if group], [*refused, *too_many]


def _balanced(gathering: Gathering, sound: Sequence[int], recipe: Recipe) -> tuple[list[int], list[Quarantined]]:
    """The first images of each class, at most `balance` times as many as the smallest class has, and those beyond."""
    labels = [record.label for record in gathering.spool.records]
    balance = recipe.labeller.balance
    if balance is None:
        return list(sound), []
    counts = Counter(dict.fromkeys(recipe.task.classes, 0) | Counter(labels[index] for index in sound))
    smallest = min(counts, key=lambda name: counts[name])
    # Where a class cannot be split at all, that is the error to tell. Rounded: 1.15 times 100 is a little less than 115.
    most = None if counts[smallest] < len(SPLITS) else int(round(balance * counts[smallest], 6))
    kept, too_many = [], []
    seen: Counter[str] = Counter()
    for index in sound:
        seen[labels[index]] += 1
        if most is not None and seen[labels[index]] > most:
            detail = f"{labels[index]} has {most} images, balance {balance:g} times the {counts[smallest]} of {smallest}"
            too_many.append(Quarantined(gathering.spool.records[index].source_id, "unbalanced", detail))
        else:
            kept.append(index)
    return kept, too_many


def _shown(labels: Sequence[str]) -> str:
    return ", ".join(label if len(label) <= 200 else f"{label[:200]}..." for label in labels)


def write_rows(gathering: Gathering, groups: list[list[int]], work: Work) -> dict[str, Any]:
    """Writes the splits, in the order of their keys, so that no reader meets the classes one after the other.

    Returns facts: `counts` of images by split and class, and of a task with fields their values. Raises DataError when a class
    cannot fill every split.
    """
    spool, recipe, kind = gathering.spool, work.recipe, kind_of(work.recipe.task)
    try:
        splits = assign_splits(groups, spool.shas, *_strata(gathering, groups, kind), recipe.labeller.split)
    except DataError as error:
        counts = dict(sorted(Counter(item.reason for item in gathering.quarantine).items()))
        raise DataError(f"{error}; in quarantine: {counts or 'nothing'}") from error
    labels: dict[str, list[str]] = {}
    answers: set[str] = set()
    for split in SPLITS:
        chosen = [index for index in range(len(spool)) if splits[index] == split]
        chosen.sort(key=lambda index: order_key(recipe.labeller.split.seed, spool.shas[index]))
        rows = [_row(gathering, index, split, recipe) for index in chosen]
        sizes = [spool.png_sizes[index] for index in chosen]
        write_split(work.folder, split, rows, sizes, map(spool.png, chosen), kind.classes)
        labels[split] = [row.label for row in rows]
        answers.update(row.answer for row in rows)
    fields = field_facts(kind, labels)
    facts: dict[str, Any] = {"counts": {split: _counts(own, kind) for split, own in labels.items()}}
    if not kind.closed:
        facts["longest_answers"] = sorted(answers, key=lambda text: (-len(text), text))[:LONGEST]
    return {**facts, **({"fields": fields} if fields else {})}


def _strata(gathering: Gathering, groups: list[list[int]], kind: TaskKind) -> tuple[list[str], list[str]]:
    """What each image is to the split, and what of that every split must have."""
    labels = [record.label for record in gathering.spool.records]
    if kind.classes:
        return labels, kind.classes
    if len(groups) < len(SPLITS):
        raise DataError(f"{sum(map(len, groups))} usable images, {len(groups)} of them different; train, validation and test "
                        "need one each; add images")  # fmt: skip
    own = strata(labels, groups, kind, least=len(SPLITS))
    return own, sorted({own[index] for group in groups for index in group})


def _counts(labels: Sequence[str], kind: TaskKind) -> dict[str, int]:
    """Images by class; as `images` where there are no classes."""
    return {name: labels.count(name) for name in kind.classes} or {"images": len(labels)}


def _row(gathering: Gathering, index: int, split: str, recipe: Recipe) -> Row:
    spool, verdict = gathering.spool, gathering.verdicts[index]
    record, sha256 = spool.records[index], spool.shas[index]
    return Row(
        label=record.label,
        answer=verdict.answer,
        question=recipe.task.question,
        variants=variants(recipe.task, sha256, record.label) if split == "train" else [],
        sha256=sha256,
        phash=f"{spool.hashes[index]:016x}",
        source=recipe.labeller.source.kind,
        source_id=record.source_id,
        url=record.url,
        author=record.author,
        licence=record.licence,
        labelled_by="person" if verdict.by_person else "teacher" if recipe.labeller.teacher else "source",
        teacher_model=verdict.model,
        teacher_reason=verdict.reason,
        teacher_runner_up=verdict.runner_up,
        teacher_confidence=verdict.confidence,
        teacher_votes=verdict.votes,
        teacher_request_id=verdict.request_id,
        teacher_cost=verdict.cost_usd,
    )
