"""The chart rendered by real Helm (the wheel helm-python-sdk), without a cluster."""

from __future__ import annotations

import functools
import json
import re
import shutil
from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import helm_python as helm
import kubernetes_validate.utils as kubernetes_schemas
import pytest
import yaml

ROOT = Path(__file__).parents[2]
CHART = ROOT / "charts" / "pocketvlm"
JOBS = sorted(path.stem for path in (ROOT / "jobs").glob("*.yaml"))
STAGES = ("labeller", "trainer", "merger", "quantiser", "evaluator")

Object = dict[str, Any]


class StrictLoader(yaml.CSafeLoader):
    """Refuses a key that is there twice, as an API server with strict field validation does."""


def _mapping(loader: StrictLoader, node: yaml.MappingNode) -> dict[Hashable, Any]:
    keys = [loader.construct_object(key) for key, _ in node.value]
    twice = {key for key in keys if keys.count(key) > 1}
    assert not twice, f"{node.start_mark}: {twice} twice"
    return yaml.CSafeLoader.construct_mapping(loader, node, deep=True)


StrictLoader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)


@dataclass(frozen=True)
class Rendered:
    """What Helm makes of one set of values."""

    manifests: dict[str, str]
    """Path of a template -> what it gives."""

    @property
    def notes(self) -> str:
        """What `helm install` prints."""
        return self.manifests["pocketvlm/templates/NOTES.txt"]

    @property
    def text(self) -> str:
        """All objects, template by template, as `helm template` writes them."""
        parts = [f"---\n# Source: {path}\n{text.strip()}\n" for path, text in sorted(self.manifests.items()) if text.strip()]
        return "".join(part for part in parts if "NOTES.txt" not in part.split("\n", 2)[1])

    @functools.cached_property
    def objects(self) -> list[Object]:
        """Every object, the tests of `helm test` too."""
        return [item for item in yaml.load_all(self.text, StrictLoader) if item]

    def of(self, kind: str, name: str = "") -> list[Object]:
        """Objects of a kind, and with a name if one is given."""
        return [item for item in self.objects if item["kind"] == kind and name in ("", item["metadata"]["name"])]

    def one(self, kind: str, name: str) -> Object:
        """The only object of this kind and name."""
        (found,) = self.of(kind, name)
        return found

    def stage(self, stage: str) -> Object:
        """The Job of a stage."""
        (found,) = [job for job in self.of("Job") if job["metadata"]["labels"]["app.kubernetes.io/component"] == stage]
        return found

    def container(self, stage: str) -> Object:
        """The stage's own container."""
        (found,) = self.stage(stage)["spec"]["template"]["spec"]["containers"]
        return dict(found)

    def pods(self) -> Iterator[tuple[str, Object, Object]]:
        """Name of the owner, metadata and specification of every pod."""
        for item in self.objects:
            if item["kind"] in ("Job", "StatefulSet"):
                template = item["spec"]["template"]
                yield f"{item['kind']} {item['metadata']['name']}", template["metadata"], template["spec"]
            elif item["kind"] == "Pod":
                yield f"Pod {item['metadata']['name']}", item["metadata"], item["spec"]

    def containers(self) -> Iterator[tuple[str, Object]]:
        """Name and specification of every container."""
        for name, _, spec in self.pods():
            for container in [*spec.get("initContainers", []), *spec["containers"]]:
                yield f"{name}, container {container['name']}", container


def nested(path: str, value: Any) -> dict[str, Any]:
    """`{"a": {"b": value}}` of the path `a.b`."""
    for key in reversed(path.split(".")):
        value = {key: value}
    return dict(value)


def laid_over(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """As a second `-f` does it."""
    result = dict(under)
    for key, value in over.items():
        both = isinstance(value, Mapping) and isinstance(result.get(key), Mapping)
        result[key] = laid_over(result[key], value) if both else value
    return result


@functools.cache
def run_file_values(job: str) -> dict[str, Any]:
    """A run file as Helm itself reads it."""
    return helm.values_from_yaml((ROOT / "jobs" / f"{job}.yaml").read_text())


Render = Callable[..., Rendered]


def renderer(chart: helm.Chart) -> Render:
    def render(
        *changes: Mapping[str, Any], job: str = "digits", release: str = "", namespace: str = "models", upgrade: bool = False
    ) -> Rendered:
        """Renders a run file with changes laid over it. Raises HelmValuesError and HelmRenderError as `helm install` fails."""
        values = functools.reduce(laid_over, changes, run_file_values(job))
        manifests = chart.render(
            values, name=release or job, namespace=namespace, is_upgrade=upgrade, is_install=not upgrade
        )  # fmt: skip
        return Rendered(manifests)

    return render


@pytest.fixture(scope="session")
def render() -> Iterator[Render]:
    with helm.Chart.load(CHART) as chart:
        yield renderer(chart)


@pytest.fixture(scope="session")
def render_unchecked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Render]:
    """The same without the schema, which takes two thirds of the time: for values that are known to be valid."""
    copy = tmp_path_factory.mktemp("chart") / "pocketvlm"
    shutil.copytree(CHART, copy, ignore=shutil.ignore_patterns("values.schema.json"))
    with helm.Chart.load(copy) as chart:
        yield renderer(chart)


@functools.cache
def api_definitions(version: str) -> dict[str, Any]:
    """All types of a Kubernetes version, closed."""
    place = f"kubernetes-json-schema/v{version}-local-strict/_definitions.json"
    return dict(kubernetes_schemas.schema_contents(place, version)["$defs"])


@functools.cache
def api_schema(version: str, kind: str, api_version: str) -> dict[str, Any]:
    """One kind of object as a JSON schema that needs no other file."""
    group = re.sub(r"^([^./]*)(?:\.[^/]*)?/", r"\1-", api_version)
    place = f"kubernetes-json-schema/v{version}-local-strict/{kind.lower()}-{group}.json"
    schema = kubernetes_schemas.schema_contents(place, version)
    used: dict[str, Any] = {}
    queue = _references(schema)
    while queue:
        name = queue.pop()
        if name not in used:
            used[name] = api_definitions(version)[name]
            queue += _references(used[name])
    text = json.dumps({**schema, "$defs": used}).replace("/api/_definitions.json#", "#")
    return dict(json.loads(text)) | {"$id": f"urn:{version}:{kind}"}


def _references(schema: Any) -> list[str]:
    return re.findall(r'#/\$defs/([\w.-]+)"', json.dumps(schema))
