"""Reads YAML into a run file, and says what is wrong with it: key path, what, what to do. The only reader of YAML."""

from __future__ import annotations

import difflib
import re
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from pocketvlm.errors import Corrupt, RunFileError
from pocketvlm.run_file.block import IdleKeys
from pocketvlm.run_file.recipe import RunFile
from pocketvlm.run_file.task import Device


class _KeyTwice(yaml.YAMLError):
    """YAML itself lets the second one win, silently."""


class _Loader(yaml.SafeLoader):
    """Refuses a key that is there twice. Reads 1e-05 and 5e+07 as numbers, as YAML 1.2 does and as Helm writes what was 1.0e-5
    and 50000000 in a values file."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        first: dict[tuple[str, str], int] = {}
        for key, _ in node.value:
            line = key.start_mark.line + 1
            if (name := (key.tag, str(key.value))) in first:
                raise _KeyTwice(f"line {line}: the key `{key.value}` is there already, in line {first[name]}; remove one")
            first[name] = line
        return node


_Loader.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9]+[eE][-+]?[0-9]+\Z"), list("-+0123456789"))


def read_run_file(path: Path) -> RunFile:
    """Reads and checks a run file. Raises RunFileError with one line for each problem: key path, what, what to do."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise RunFileError(f"{path}: cannot be read ({error.strerror}); name an existing run file") from error
    except UnicodeDecodeError as error:
        raise RunFileError(f"{path}: is not UTF-8 text ({error.reason} at byte {error.start}); save it as UTF-8") from error
    try:
        data = yaml.load(text, Loader=_Loader)
    except _KeyTwice as error:
        raise RunFileError(f"{path}: {error}") from error
    except yaml.YAMLError as error:
        raise RunFileError(f"{path}: is not YAML: {error}") from error
    if not isinstance(data, dict) or "run" not in data:
        raise RunFileError(f"{path}: has no `run:` block; put the recipe under `run:`")
    return check_run_file(data, path)


def read_recipe(text: str, where: str) -> dict[str, Any]:
    """The `run:` block that a run left in its store, unchecked: another version may have written it. Raises Corrupt.

    The device's defaults are there, also those that artifacts/run_record.py leaves out.
    """
    try:
        data = yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        raise Corrupt(f"{where} is not YAML; run it again") from error
    recipe = data.get("run") if isinstance(data, dict) else None
    if not isinstance(recipe, dict):
        raise Corrupt(f"{where} has no `run:` block; run it again")
    device = recipe.get("device")
    return {**recipe, "device": {**Device().model_dump(mode="json"), **device}} if isinstance(device, dict) else recipe


def check_run_file(data: dict[str, Any], path: Path) -> RunFile:
    """Checks parsed YAML. Raises RunFileError."""
    try:
        return RunFile.model_validate({**data, "folder": path.parent})
    except ValidationError as error:
        raise RunFileError("\n".join(f"{path}: {line}" for line in _explain(error))) from error


def _explain(error: ValidationError) -> Iterator[str]:
    for item in error.errors():
        keys = [key for key in item["loc"] if key != item.get("ctx", {}).get("tag")]
        tags = {"digits", "folder", "records", "archive", "kaggle", "coco", "unsplash", "hub"}
        keys = [key for i, key in enumerate(keys) if not (key in tags and i and keys[i - 1] == "source")]
        where = "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in keys).lstrip(".")
        if item["type"] == "extra_forbidden":
            near = difflib.get_close_matches(str(keys[-1]), _sibling_keys(item["loc"]), n=1, cutoff=0.4)
            hint = f"; did you mean `{near[0]}`?" if near else ""
            yield f"{where}: no such key{hint}"
        elif item["type"] == "missing":
            yield f"{where}: is missing; add it"
        elif item["type"] == "value_error" and isinstance(item["ctx"]["error"], IdleKeys):
            yield from (f"{where}.{key}: {why}" for key, why in item["ctx"]["error"].keys.items())
        elif item["type"] == "value_error":
            yield f"{where}: {item['ctx']['error']}"
        else:
            value = f" (got {item['input']!r})" if not isinstance(item["input"], dict | list) else ""
            yield f"{where}: {item['msg'][0].lower()}{item['msg'][1:]}{value}"


def _sibling_keys(loc: tuple[int | str, ...]) -> list[str]:
    """Keys of the model that holds the key at `loc`."""
    model: Any = RunFile
    for key in loc[:-1]:
        models = list(_models_of(model))
        found = next((m.model_fields[key].annotation for m in models if key in m.model_fields), None)
        if found is None:
            chosen = [
                m for m in models if typing.get_args(getattr(m.model_fields.get("kind"), "annotation", None)) == (key,)
            ]
            found = chosen[0] if chosen else model
        model = found
    return sorted({name for m in _models_of(model) for name in m.model_fields})


def _models_of(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and not isinstance(annotation, types.GenericAlias):
        if issubclass(annotation, BaseModel):
            yield annotation
        return
    for argument in typing.get_args(annotation):
        yield from _models_of(argument)
