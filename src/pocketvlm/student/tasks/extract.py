"""`kind: extract`: a JSON object with fixed keys in a fixed order, without white space."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from pocketvlm.run_file import ExtractField
from pocketvlm.student.tasks.kind import Said, TaskKind

TYPES = {"integer": "integer", "number": "number", "boolean": "boolean", "string": "string", "list": "array"}
"""Type of a field -> JSON schema's."""


class Extraction(TaskKind):
    """All of the fields."""

    def answer(self, label: str, reason: str | None = None) -> str:
        """The compact JSON. Raises ValueError, which says what is wrong, for a label that is not of these fields."""
        return self.compact(json.loads(label))

    def compact(self, values: Any) -> str:
        """The label of these values: compact JSON in the order of the fields. Raises ValueError as `answer` does."""
        if not isinstance(values, Mapping):
            raise ValueError("it is not a JSON object")
        if odd := sorted(values.keys() ^ self.task.fields.keys()):
            state = "missing" if odd[0] in self.task.fields else "none of the task's fields"
            raise ValueError(f"{odd[0]} is {state}")
        for name, field in self.task.fields.items():
            if wrong := _wrong(values[name], field):
                raise ValueError(f"{name} {wrong}")
        ordered = {name: values[name] for name in self.task.fields}
        return json.dumps(ordered, ensure_ascii=False, separators=(",", ":"))

    def read(self, text: str) -> Said | None:
        """Any JSON of these fields, whatever its white space and order."""
        try:
            return Said(self.compact(json.loads(text, parse_constant=_no_number)))
        except (ValueError, RecursionError):
            return None

    def grammar(self, lead: str) -> None:
        """llama.cpp's own converter makes it of `schema`."""
        return None

    def schema(self) -> dict[str, Any]:
        """Every key required, in order, and no other."""
        return {
            "type": "object",
            "properties": {name: _schema(field) for name, field in self.task.fields.items()},
            "required": list(self.task.fields),
            "additionalProperties": False,
        }

    def problems(self) -> Iterator[str]:
        """The question must show a JSON object that would be a right answer's shape."""
        for start in (i for i, character in enumerate(self.task.question) if character == "{"):
            try:
                shown, _ = json.JSONDecoder().raw_decode(self.task.question[start:])
            except ValueError:
                continue
            if isinstance(shown, dict) and list(shown) == list(self.task.fields):
                return
        keys = ", ".join(f'"{name}": ...' for name in self.task.fields)
        yield f"question: shows no valid JSON with the fields in their order; write an example into it: {{{keys}}}"

    def longest(self, tokens: Callable[[str], int]) -> str | None:
        """Known where every field has few values."""
        texts: dict[str, Any] = {}
        for name, field in self.task.fields.items():
            values: list[Any] = [False, True] if field.type == "boolean" else list(field.values)
            if not values or field.type == "list" and field.max_items is None:
                return None
            value = max(values, key=lambda value: tokens(json.dumps(value, ensure_ascii=False)))
            texts[name] = [value] * (field.max_items or 0) if field.type == "list" else value
        return self.compact(texts)

    def _own_settings(self) -> dict[str, Any]:
        fields = {name: field.model_dump(mode="json", exclude={"description"}) for name, field in self.task.fields.items()}
        return {"fields": [{name: field} for name, field in fields.items()]}


def _schema(field: ExtractField) -> dict[str, Any]:
    if field.values and field.type != "list":
        return {"enum": list(field.values)}
    if field.type != "list":
        return {"type": TYPES[field.type], **({"maxLength": field.max_length} if field.max_length else {})}
    item: dict[str, Any] = {"enum": list(field.values)} if field.values else {"type": "string"}
    if field.max_length:
        item["maxLength"] = field.max_length
    return {"type": "array", "items": item, **({"maxItems": field.max_items} if field.max_items else {})}


def _wrong(value: Any, field: ExtractField) -> str | None:
    """What keeps a value from being of the field; None if nothing does."""
    kinds: dict[str, tuple[type, ...]] = {
        "integer": (int,), "number": (int, float), "boolean": (bool,), "string": (str,), "list": (list,)
    }  # fmt: skip
    if not isinstance(value, kinds[field.type]) or isinstance(value, bool) != (field.type == "boolean"):
        return f"is {json.dumps(value, ensure_ascii=False)[:60]}, which is no {field.type}"
    items: list[Any] = value if isinstance(value, list) else [value]
    if field.type == "list" and not all(isinstance(item, str) for item in items):
        return "holds something else than texts"
    if field.values and (odd := next((item for item in items if item not in field.values), None)) is not None:
        return f"is or holds {odd!r}, which is none of its values"
    if field.max_length and (long := next((item for item in items if len(item) > field.max_length), None)) is not None:
        return f"has {len(long)} characters and may have {field.max_length}"
    if field.max_items and len(items) > field.max_items:
        return f"has {len(items)} texts and may have {field.max_items}"
    return None


def _no_number(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")
