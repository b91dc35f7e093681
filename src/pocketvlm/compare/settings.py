"""What differs between the recipes of runs, key by key; and their named numbers, whatever a task measures."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pocketvlm.compare.runs import Run

ABSENT = "not there"
SHOWN_CHARACTERS = 400
IGNORED = ("name", "version")
"""Keys of a recipe that say nothing about what it does."""
NOT_NUMBERS = (
    "classes", "confusion", "bins", "bins_scaled", "interval", "images", "correct", "prompt_tokens", "shipped", "blind",
    "accuracy", "agreement",
)  # fmt: skip
"""Keys of a type's metrics that have a place of their own, or are no single numbers."""


@dataclass(frozen=True)
class Row:
    """A key and its value in each run, as text."""

    key: str
    values: list[str]


def settings_that_differ(runs: Sequence[Run]) -> list[Row]:
    """Keys of the recipes whose values are not all equal, in the order of the first recipe that has them."""
    recipes = [{key: value for key, value in run.recipe.items() if key not in IGNORED} for run in runs]
    return _differing([dict(_leaves("", recipe)) for recipe in recipes])


def versions_that_differ(runs: Sequence[Run]) -> list[Row]:
    """The same of the packages that made them."""
    return _differing([dict(sorted(run.versions.items())) for run in runs])


def numbers(runs: Sequence[Run], types: Sequence[str]) -> list[Row]:
    """Every named number of one type of each run; only those that at least two runs have."""
    found = [dict(_numbers("", {key: value for key, value in run.metrics["types"][name].items() if key not in NOT_NUMBERS}))
             for run, name in zip(runs, types, strict=True)]  # fmt: skip
    keys = dict.fromkeys(key for values in found for key in values)
    return [Row(key.replace("_", " "), [number(values[key]) if key in values else "" for values in found]) for key in keys
            if sum(key in values for values in found) > 1]  # fmt: skip


def number(value: float) -> str:
    """A whole number as it is, others with four digits; yes or no for what is either."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{int(value):,}" if value == int(value) and abs(value) >= 2 else f"{value:.4f}".rstrip("0").rstrip(".")


def _differing(found: Sequence[Mapping[str, Any]]) -> list[Row]:
    keys = dict.fromkeys(key for values in found for key in values)
    missing = object()
    rows = []
    for key in keys:
        values = [values.get(key, missing) for values in found]
        if any(value != values[0] for value in values):
            rows.append(Row(key, [ABSENT if value is missing else _text(value) for value in values]))
    return rows


def _leaves(prefix: str, value: Any) -> list[tuple[str, Any]]:
    """(key path, value) of all that is no mapping and no list of mappings."""
    if isinstance(value, dict):
        return [leaf for key, inner in value.items() for leaf in _leaves(f"{prefix}.{key}" if prefix else key, inner)]
    if isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
        if all(len(item) == 1 for item in value):  # an ordered mapping: classes, fields
            return _leaves(prefix, {key: inner for item in value for key, inner in item.items()})
        return [leaf for place, inner in enumerate(value) for leaf in _leaves(f"{prefix}[{place}]", inner)]
    return [(prefix, value)]


def _numbers(prefix: str, value: Any) -> list[tuple[str, float]]:
    if isinstance(value, dict):
        return [leaf for key, inner in value.items() for leaf in _numbers(f"{prefix} · {key}" if prefix else key, inner)]
    if isinstance(value, list) and value and all(isinstance(item, dict) and "name" in item for item in value):
        return _numbers(prefix, {item["name"]: item for item in value})
    return [(prefix, value)] if isinstance(value, int | float) else []


def _text(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]} ..."
