"""What is written of the chart's values: values.yaml, values.schema.json, and the tables of docs/chart.md.

Helm checks values with the schema before it renders anything, so a misspelt key fails at `helm install` and names its path.
"""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Iterator
from typing import Any

import kubernetes_validate.utils as kubernetes_schemas
import yaml
from pydantic import BaseModel

from pocketvlm.chart.pods import Defaults, Pod
from pocketvlm.chart.values import Values
from pocketvlm.run_file import Recipe

VALUES_HEAD = """\
# Generated from src/pocketvlm/chart by `make docs`; edit the models there. The same as tables: docs/chart.md.
#
# run: the recipe. It has no default and comes from a run file, `-f jobs/digits.yaml`: docs/run-file.md.
"""
RESTRICTED_VOLUMES = {
    "name", "configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret",
}  # fmt: skip
"""All that Pod Security `restricted` lets a pod mount."""


def values_yaml() -> str:
    """The text of charts/pocketvlm/values.yaml."""
    return VALUES_HEAD + "\n".join(_lines(Values(), ""))


def _lines(block: BaseModel, path: str) -> Iterator[str]:
    indent = "  " * (path.count(".") + 1 if path else 0)
    for name, field in type(block).model_fields.items():
        value = getattr(block, name)
        if value is None:
            continue
        here = f"{path}.{field.alias}" if path else str(field.alias)
        if is_documented(block, name, path):
            if not path:
                yield ""
            yield from textwrap.wrap(meaning(block, name), 120, initial_indent=f"{indent}# ", subsequent_indent=f"{indent}# ",
                                     break_on_hyphens=False)  # fmt: skip
        if isinstance(value, BaseModel) and value.model_dump(exclude_none=True):
            yield f"{indent}{field.alias}:"
            yield from _lines(value, here)
        else:
            nested = None if isinstance(value, dict | list) else False
            dumped = yaml.safe_dump({field.alias: plain(value)}, sort_keys=False, default_flow_style=nested, width=110)
            yield from textwrap.indent(dumped.rstrip(), indent).split("\n")
    if not path:
        yield ""


def is_documented(block: BaseModel, name: str, path: str) -> bool:
    """Whether a key is explained here: what every pod has is explained once, at `defaults`."""
    inherited = name in Defaults.model_fields and name not in type(block).__annotations__
    return path == "defaults" or not (isinstance(block, Pod) and inherited)


def meaning(block: BaseModel, name: str) -> str:
    """What a key is, in one line: its own words, or those of the block behind it."""
    value = getattr(block, name)
    text = type(block).model_fields[name].description or (type(value).__doc__ if isinstance(value, BaseModel) else "")
    return " ".join((text or "").split())


def plain(value: Any) -> Any:
    """As YAML and JSON know it, keys as in values.yaml."""
    if isinstance(value, BaseModel):
        return value.model_dump(by_alias=True, exclude_none=True)
    return {key: plain(item) for key, item in value.items()} if isinstance(value, dict) else value


def values_schema() -> str:
    """The text of charts/pocketvlm/values.schema.json. Draft 7, which Helm 3 and 4 both know."""
    chart, run = Values.model_json_schema(), Recipe.model_json_schema()
    own, recipe = chart.pop("$defs"), run.pop("$defs")
    assert not set(own) & set(recipe), "a block of the chart and one of the run file have the same name"
    models = {**own, **recipe, "Recipe": run}
    chart["properties"] = {"run": {"$ref": "#/$defs/Recipe"}, **chart["properties"]}
    schema = _tidy({**chart, "$defs": models})
    schema["$defs"] |= _kubernetes_types(json.dumps(schema))
    return json.dumps({"$schema": "http://json-schema.org/draft-07/schema#", **schema}, indent=1) + "\n"


def _tidy(node: Any) -> Any:
    """Without what only pydantic needs, and so that an error names one key instead of all alternatives of a union."""
    if isinstance(node, list):
        return [_tidy(item) for item in node]
    if not isinstance(node, dict):
        return node
    if "kubernetes" in node:
        return {"$ref": f"#/$defs/io.k8s.api.{node['kubernetes']}"}
    if "properties" in node and "type" in node:
        node = {**node, "properties": {name: _tidy(child) for name, child in node["properties"].items()}}
        return {key: value if key in ("properties", "required") else _tidy(value) for key, value in _kept(node).items()}
    tidied = {key: _tidy(value) for key, value in _kept(node).items()}
    if "discriminator" in node:
        return _by_kind(node["discriminator"]["mapping"])
    if options := tidied.pop("anyOf", None):
        return {**_by_type(options), **tidied}
    return tidied


def _kept(node: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in node.items() if key not in ("title", "default", "discriminator")}


def _by_kind(mapping: dict[str, str]) -> dict[str, Any]:
    """A union of blocks that `kind` chooses from."""
    cases = [{"if": {"properties": {"kind": {"const": kind}}}, "then": {"$ref": ref}} for kind, ref in mapping.items()]
    return {"type": "object", "required": ["kind"], "properties": {"kind": {"enum": list(mapping)}}, "allOf": cases}


def _by_type(options: list[dict[str, Any]]) -> dict[str, Any]:
    """A union whose members differ in their type."""
    if all(set(option) == {"type"} for option in options):
        return {"type": [option["type"] for option in options]}
    *others, last = options
    if last == {"type": "null"} and len(others) == 1:
        (other,) = others
        if other.get("$ref", "").startswith("#/$defs/io.k8s."):
            return other  # null is allowed there
        if "type" in other:
            return {**other, "type": [other["type"], "null"]} | ({"enum": [*other["enum"], None]} if "enum" in other else {})
    result = last
    for option in reversed(others):
        result = {"if": {"type": option.get("type", "object")}, "then": option, "else": result}
    return result


def _kubernetes_types(text: str) -> dict[str, Any]:
    """Definitions of the newest API that are named in the schema, and all that they name."""
    version = kubernetes_schemas.latest_version()
    place = f"kubernetes-json-schema/v{version}-local-strict/_definitions.json"
    known = kubernetes_schemas.schema_contents(place, version)["$defs"]
    found: dict[str, Any] = {}
    names = re.findall(r"#/\$defs/(io\.k8s\.[\w.-]+)", text)
    while names:
        name = names.pop()
        if name in found:
            continue
        found[name] = _bare(known[name])
        if name.endswith("api.resource.Quantity"):
            found[name] = {"type": ["string", "number", "null"]}  # published as a union that null is in twice
        if name == "io.k8s.api.core.v1.Volume":
            sources = found[name]["properties"]
            found[name]["properties"] = {key: value for key, value in sources.items() if key in RESTRICTED_VOLUMES}
        names += re.findall(r"#/\$defs/(io\.k8s\.[\w.-]+)", json.dumps(found[name]))
    return dict(sorted(found.items()))


def _bare(node: Any) -> Any:
    if isinstance(node, list):
        return [_bare(item) for item in node]
    if not isinstance(node, dict):
        return node
    kept = {key: value for key, value in node.items() if not key.startswith("x-kubernetes-")}
    return {key: _bare(value) for key, value in kept.items() if key != "description" or isinstance(value, dict)}


def blocks(block: BaseModel, path: str = "") -> Iterator[tuple[str, BaseModel]]:
    """Path and values of a block and of all blocks in it, in the order of values.yaml."""
    yield path, block
    for name, field in type(block).model_fields.items():
        value = getattr(block, name)
        here = f"{path}.{field.alias}" if path else str(field.alias)
        if isinstance(value, dict) and any(isinstance(item, BaseModel) for item in value.values()):
            yield f"{here}.NAME", next(iter(value.values()))
        elif isinstance(value, BaseModel):
            yield from blocks(value, here)
