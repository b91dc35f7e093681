"""What the dataset says of the fields of an `extract` task: how far answers agree in each, and what values there are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pocketvlm.run_file import ExtractField
from pocketvlm.run_file.values import is_closed
from pocketvlm.student.tasks import TaskKind


class Agreement:
    """How often labels have the value of another one, field by field. Says nothing of a task without fields."""

    def __init__(self, kind: TaskKind) -> None:
        self._kind = kind
        self._shares: dict[str, float] = dict.fromkeys(kind.task.fields, 0.0)
        self._images = 0

    def add(self, label: str, others: Sequence[str]) -> None:
        """One image: its label, and what is held against it."""
        values = self._kind.values(label)
        found = [self._kind.values(other) for other in others]
        for name, value in values.items():
            self._shares[name] += sum(other[name] == value for other in found) / len(found)
        self._images += 1

    def facts(self) -> dict[str, float]:
        """Field -> the images' mean share of equal values; empty where nothing was held against anything."""
        return {name: round(share / self._images, 6) for name, share in self._shares.items() if self._images}


def field_facts(kind: TaskKind, labels: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """Of each field, its values (or how long its lists and texts are) by split; `labels` by split. Empty without fields."""
    values = {split: [kind.values(label) for label in own] for split, own in labels.items()}
    return {
        name: {"type": field.type, **_counts(field, {split: [one[name] for one in own] for split, own in values.items()})}
        for name, field in kind.task.fields.items()
    }


def _counts(field: ExtractField, values: Mapping[str, Sequence[Any]]) -> dict[str, Any]:
    """`values` where there are few, `lengths` of lists, and how many `different` values or texts there are otherwise."""
    if is_closed(field):
        known = [False, True] if field.type == "boolean" else field.values
        return {"values": [[value, *(own.count(value) for own in values.values())] for value in known]}
    everything = [value for own in values.values() for value in own]
    if field.type == "list":
        lengths = sorted({len(value) for value in everything})
        counted = {split: Counter(map(len, own)) for split, own in values.items()}
        return {
            "lengths": [[length, *(own[length] for own in counted.values())] for length in lengths],
            "different": len({text for value in everything for text in value}),
        }
    longest = {"characters": max(map(len, everything), default=0)} if field.type == "string" else {}
    return {"different": len(set(everything)), **longest}


def strata(labels: Sequence[str], groups: Iterable[Sequence[int]], kind: TaskKind, least: int) -> list[str]:
    """What each image's split is stratified by: its closed fields, the rarest joined until each is in `least` groups.

    As far as that goes: in the end all images are alike.
    """
    own = [kind.stratum(label) if label else "" for label in labels]
    held = [{own[index] for index in group} for group in groups]
    while len(counts := Counter(name for names in held for name in names)) > 1:
        rarest, next_rarest = sorted(counts, key=lambda name: (counts[name], name))[:2]
        if counts[rarest] >= least:
            break
        joined = f"{rarest} / {next_rarest}"
        own = [joined if name in (rarest, next_rarest) else name for name in own]
        held = [{joined if name in (rarest, next_rarest) else name for name in names} for names in held]
    return own
