"""`kind: extract`: a JSON object with fixed keys in a fixed order, without white space."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from pocketvlm.run_file import ExtractField
from pocketvlm.run_file.values import compact, is_closed, parse
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
        return compact(self.task.fields, values)

    def read(self, text: str) -> Said | None:
        """Any JSON of these fields, whatever its white space and order."""
        try:
            said = Said(self.compact(parse(text)))
            said.label.encode()  # half of a character, as `\\ud83d` alone, is no text
        except ValueError:
            return None
        return said

    def label_of(self, answer: Mapping[str, Any]) -> str:
        """The fields of it."""
        return self.compact({name: answer[name] for name in self.task.fields})

    def values(self, label: str) -> dict[str, Any]:
        """By name."""
        found: dict[str, Any] = json.loads(label)
        return found

    def stratum(self, label: str) -> str:
        """The values of the fields that have few."""
        values = self.values(label)
        return ", ".join(f"{name} {values[name]}" for name, field in self.task.fields.items() if is_closed(field))

    def grammar(self, lead: str) -> None:
        """llama.cpp's own converter makes it of `schema`."""

    def schema(self) -> dict[str, Any]:
        """Every key required, in order, and no other."""
        return {
            "type": "object",
            "properties": {name: _schema(field) for name, field in self.task.fields.items()},
            "required": list(self.task.fields),
            "additionalProperties": False,
        }

    def opening(self) -> str:
        """The first key."""
        return f'{{"{next(iter(self.task.fields))}":'

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
            if not values or (field.type == "list" and field.max_items is None):
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
