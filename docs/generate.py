"""Writes what follows from the code: `make docs`. A test compares it with what this makes now.

docs/run-file.md and docs/chart.md, and the chart's values.yaml and values.schema.json.
"""

from __future__ import annotations

import json
import sys
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

sys.path.insert(0, str(Path(__file__).parent))

import chart_files

from pocketvlm.chart.pods import KubernetesType
from pocketvlm.chart.values import Values
from pocketvlm.run_file import Recipe

CHART = Path(__file__).parents[1] / "charts" / "pocketvlm"

INTRODUCTION = """\
# The run file

Generated from `src/pocketvlm/run_file` by `make docs`; edit the docstrings there.

A run file is YAML. Its `run:` block is the recipe, described here. Other top-level keys belong to the Helm chart and
are not read. A key that is not on this page is an error that names its nearest neighbour; a key that is there twice, or that
means nothing beside the others (`rank` of a `full` phase), is an error too. `pocketvlm plan RUN` checks a file and says what
each stage will do; the files in [`jobs/`](../jobs) are complete examples.

Units stand in the names: `_px` pixels, `_steps` optimiser steps. Relative paths start at the folder of the run file.
"""
VALUES_HEADING = "## All values"
VALUES_INTRODUCTION = """
Generated from `src/pocketvlm/chart` by `make docs`; edit the docstrings there. A type such as core.v1.Toleration is that of
the Kubernetes API. A key that is not here is an error at `helm install` that names its path.
"""
SCALARS = {str: "text", int: "whole number", float: "number", bool: "true or false", type(None): "null", Any: "any"}


def run_file_reference() -> str:
    """The text of docs/run-file.md."""
    sections = [_section(path, model) for path, model in _blocks("run", Recipe)]
    return "\n".join([INTRODUCTION, *sections])


def chart_reference() -> str:
    """The text of docs/chart.md: what is written by hand, and below its last heading the tables of all values."""
    by_hand, heading, _ = (Path(__file__).parent / "chart.md").read_text().partition(VALUES_HEADING)
    assert heading, f"docs/chart.md has lost its heading {VALUES_HEADING!r}"
    return "\n".join([by_hand + heading, VALUES_INTRODUCTION, *map(_values_section, chart_files.blocks(Values()))])


def _values_section(place: tuple[str, BaseModel]) -> str:
    path, block = place
    lines = [f"### `{path}`", "", " ".join((type(block).__doc__ or "").split()), ""] if path else []
    lines += ["| key | type | default | meaning |", "| --- | --- | --- | --- |"]
    for name, field in type(block).model_fields.items():
        value = getattr(block, name)
        if value is None and not chart_files.is_documented(block, name, path):
            continue
        below = isinstance(value, BaseModel) or name == "presets"
        default = "see below" if below else "" if value is None else f"`{json.dumps(chart_files.plain(value))}`"
        cells = [f"`{field.alias}`", _type(field).replace(" or null", ""), default, chart_files.meaning(block, name)]
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join([*lines, ""])


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
    kubernetes = [item.name for item in field.metadata if isinstance(item, KubernetesType)]
    return ", ".join([kubernetes[0] if kubernetes else _shown(field.annotation), *_limits(field.metadata)])


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
        if isinstance(arguments[1], KubernetesType):
            return arguments[1].name
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


def files() -> dict[Path, str]:
    """Every generated file and its text."""
    return {
        Path(__file__).parent / "run-file.md": run_file_reference(),
        Path(__file__).parent / "chart.md": chart_reference(),
        CHART / "values.yaml": chart_files.values_yaml(),
        CHART / "values.schema.json": chart_files.values_schema(),
    }


if __name__ == "__main__":
    for path, text in files().items():
        path.write_text(text)
