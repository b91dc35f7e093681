"""Values of the fields of an `extract` task: what they may be, their one text, and what other ways of writing them mean."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any

from pocketvlm.run_file.task import ExtractField

EXACT = 2**53
"""Whole numbers beyond it are no numbers to every JSON reader."""


def compact(fields: Mapping[str, ExtractField], values: Any) -> str:
    """The label: JSON of these values in the order of the fields, without white space. Equal values give equal texts.

    Raises ValueError, which says what is wrong, for what is not exactly a value of each field.
    """
    if not isinstance(values, Mapping):
        raise ValueError("it is not a JSON object")
    if odd := sorted(values.keys() ^ fields.keys()):
        state = "missing" if odd[0] in fields else "none of the task's fields"
        raise ValueError(f"{odd[0]} is {state}")
    for name, field in fields.items():
        if wrong := _wrong(values[name], field):
            raise ValueError(f"{name} {wrong}")
    ordered = {name: _whole(values[name]) if field.type == "number" else values[name] for name, field in fields.items()}
    return json.dumps(ordered, ensure_ascii=False, separators=(",", ":"))


def read_label(fields: Mapping[str, ExtractField], values: Any) -> str:
    """The label that values mean, each as its field has it where nothing is lost by that. Raises ValueError as `compact` does."""
    if isinstance(values, Mapping):
        values = {name: coerced(value, fields[name]) if name in fields else value for name, value in values.items()}
    return compact(fields, values)


def is_closed(field: ExtractField) -> bool:
    """Whether it has one of few values: yes or no, or one of a list."""
    return field.type == "boolean" or (bool(field.values) and field.type != "list")


def parse(text: str) -> Any:
    """What a JSON text says. Raises ValueError for what is no JSON, NaN and Infinity too."""
    try:
        return json.loads(text, parse_constant=_no_number)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def coerced(value: Any, field: ExtractField) -> Any:
    """A value as its field has it, where nothing is lost by that: "1" is 1, 1.0 is 1, a JSON list in a text is that list.

    Anything else comes back as it is, for `compact` to refuse: true is not 1, and 1 is no text.
    """
    if isinstance(value, str):
        value = _from_text(printable(value), field)
    elif isinstance(value, list | tuple):
        value = [printable(item) if isinstance(item, str) else item for item in value]
    elif field.type == "integer":
        value = _whole(value)
    if not field.values or field.type not in ("string", "list"):
        return value
    known = {_folded(one): one for one in field.values}
    if isinstance(value, list):
        return [known.get(_folded(item), item) if isinstance(item, str) else item for item in value]
    return known.get(_folded(value), value) if isinstance(value, str) else value


def printable(text: str) -> str:
    """Trimmed, and without the halves of surrogate pairs that JSON can hold and neither UTF-8 nor Parquet can."""
    return text.strip().encode("utf-8", "backslashreplace").decode()


def _from_text(text: str, field: ExtractField) -> Any:
    if field.type == "boolean":
        return {"true": True, "false": False}.get(text.casefold(), text)
    if field.type == "integer" and re.fullmatch(r"[+-]?\d{1,15}", text):
        return int(text)
    if field.type in ("integer", "number") and re.fullmatch(r"[+-]?\d{1,15}(\.\d+)?([eE][+-]?\d{1,3})?", text):
        return _whole(float(text)) if field.type == "integer" else float(text)
    if field.type == "list" and text.startswith("["):
        try:
            return coerced(parse(text), field)
        except ValueError:
            return text
    return text


def _whole(value: Any) -> Any:
    """1 for 1.0, so that one number has one text; anything else as it is."""
    return int(value) if isinstance(value, float) and value.is_integer() and abs(value) <= EXACT else value


def _wrong(value: Any, field: ExtractField) -> str | None:
    """What keeps a value from being of the field; None if nothing does."""
    kinds: dict[str, tuple[type, ...]] = {
        "integer": (int,), "number": (int, float), "boolean": (bool,), "string": (str,), "list": (list,)
    }  # fmt: skip
    if not isinstance(value, kinds[field.type]) or isinstance(value, bool) != (field.type == "boolean"):
        return f"is {_shown(value)}, which is no {field.type}"
    if isinstance(value, int | float) and not (math.isfinite(value) if isinstance(value, float) else abs(value) <= EXACT):
        return f"is {_shown(value)}, which not every reader of JSON can take"
    items: list[Any] = value if isinstance(value, list) else [value]
    if field.type == "list" and not all(isinstance(item, str) for item in items):
        return "holds something else than texts"
    if field.values and (odd := next((item for item in items if item not in field.values), None)) is not None:
        return f"is or holds {odd!r:.100}, which is none of its values"
    if field.max_length and (long := next((item for item in items if len(item) > field.max_length), None)) is not None:
        return f"has {len(long)} characters and may have {field.max_length}"
    if field.max_items and len(items) > field.max_items:
        return f"has {len(items)} texts and may have {field.max_items}"
    return None


def _shown(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)[:60]


def _folded(text: object) -> str:
    return " ".join(str(text).split()).casefold()


def _no_number(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")
