"""Answers with fields beside each other: what the label says of an image, and which of the answers say otherwise."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pocketvlm.student.tasks import TaskKind


@dataclass(frozen=True)
class Value:
    """What one field holds, as texts: one, or those of a list."""

    texts: list[str]
    right: bool = True
    """It is the label's."""


@dataclass(frozen=True)
class FieldRow:
    """One field of an image."""

    name: str
    label: Value
    answers: list[Value | None]
    """Of each run; None: its answer cannot be read."""

    @property
    def agreed(self) -> bool:
        """All say what the label says."""
        return all(value is not None and value.right for value in self.answers)


def field_rows(kind: TaskKind | None, label: str, answers: Sequence[str]) -> list[FieldRow]:
    """A row for each field of the label; none for tasks that answer with one thing. Answers are as `Answer.text`."""
    wanted = kind.values(label) if kind else {}
    said = [kind.values(answer) if kind and kind.read(answer) else None for answer in answers] if wanted else []
    return [
        FieldRow(name, Value(_texts(value)), [
            None if one is None else Value(_texts(one[name]), one[name] == value) for one in said
        ])
        for name, value in wanted.items()
    ]  # fmt: skip


def _texts(value: Any) -> list[str]:
    return [item if isinstance(item, str) else json.dumps(item) for item in (value if isinstance(value, list) else [value])]
