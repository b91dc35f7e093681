"""Writes the pages of docs/ that follow from the code: `make docs`. A test compares them with what this makes now."""

from __future__ import annotations

import json
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from pocketvlm.run_file import Recipe

INTRODUCTION = """\
# The run file

Generated from `src/pocketvlm/run_file.py` by `make docs`; edit the docstrings there.

A run file is YAML. Its `run:` block is the recipe, described here. Other top-level keys belong to the Helm chart and
are not read. A key that is not on this page is an error that names its nearest neighbour. `pocketvlm plan RUN` checks a
file and says what each stage will do; the files in [`jobs/`](../jobs) are complete examples.

Units stand in the names: `_px` pixels, `_steps` optimiser steps. Relative paths start at the folder of the run file.
"""
SCALARS = {str: "text", int: "whole number", float: "number", bool: "true or false", type(None): "null", Any: "any"}


def run_file_reference() -> str:
    """The text of docs/run-file.md."""
    sections = [_section(path, model) for path, model in _blocks("run", Recipe)]
    return "\n".join([INTRODUCTION, *sections])


def _blocks(path: str, model: type[BaseModel]) -> Iterator[tuple[str, type[BaseModel]]]:
    """Path and model of a block and of all blocks in it, in the order of the run file."""
    yield path, model
    for name, field in model.model_fields.items():
        below = _models(field.annotation)
        for child in below:
            place = f"{path}.{name}" + ("[]" if typing.get_origin(field.annotation) is list else "")
            yield from _blocks(f"{place} of kind {_kind(child)}" if len(below) > 1 else place, child)


def _models(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and not isinstance(annotation, types.GenericAlias):
        return [annotation] if issubclass(annotation, BaseModel) else []
    return [model for argument in typing.get_args(annotation) for model in _models(argument)]


def _kind(model: type[BaseModel]) -> str:
    return str(typing.get_args(model.model_fields["kind"].annotation)[0])


def _section(path: str, model: type[BaseModel]) -> str:
    path, _, kind = path.partition(" of kind ")
    heading = f"## `{path}`" + (f" with `kind: {kind}`" if kind else "")
    lines = [heading, "", " ".join((model.__doc__ or "").split()), ""]
    lines += ["| key | type | default | meaning |", "| --- | --- | --- | --- |"]
    for name, field in model.model_fields.items():
        meaning = f"chooses {kind}" if kind and name == "kind" else " ".join((field.description or "").split())
        cells = [f"`{name}`", _type(field), _default(field), meaning]
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join([*lines, ""])


def _type(field: FieldInfo) -> str:
    return ", ".join([_shown(field.annotation), *_limits(field.metadata)])


def _shown(annotation: Any) -> str:
    """A type in words."""
    if annotation in SCALARS:
        return SCALARS[annotation]
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Literal:
        return " | ".join(f"`{argument}`" for argument in arguments)
    if _models(annotation):
        return "list of blocks" if origin is list else "block"
    if origin is typing.Annotated:
        return ", ".join([_shown(arguments[0]), *_limits(arguments[1:])])
    if origin is list:
        return f"list of {_shown(arguments[0])}"
    if origin is dict:
        return f"{_shown(arguments[0])} -> {_shown(arguments[1])}"
    assert origin in (typing.Union, types.UnionType), annotation
    return " or ".join(_shown(argument) for argument in arguments)


def _limits(metadata: typing.Iterable[Any]) -> list[str]:
    """Bounds and patterns, from pydantic's metadata."""
    words = []
    for item in metadata:
        for name, sign in (("gt", "> "), ("ge", ">= "), ("lt", "< "), ("le", "<= ")):
            if (value := getattr(item, name, None)) is not None:
                words.append(f"{sign}{value}")
        if getattr(item, "min_length", None):
            words.append("not empty")
        if pattern := getattr(item, "pattern", None):
            words.append(f"matches `{pattern}`")
    return words


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    assert value is not PydanticUndefined
    return "see below" if isinstance(value, BaseModel) else f"`{json.dumps(value)}`"


if __name__ == "__main__":
    (Path(__file__).parent / "run-file.md").write_text(run_file_reference())
