"""The values as a contract: closed, all of them used, all that is used among them, and the recipe arrives as it left."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import helm_python as helm
import pytest
import yaml
from pydantic import BaseModel

from pocketvlm.artifacts.manifest import canonical_json
from pocketvlm.chart.pods import Conductor, Defaults, ShardedStage, TrainerStage
from pocketvlm.chart.values import Values
from pocketvlm.run_file import read_run_file
from pocketvlm.stages.stage import STAGES, load_stage

from .conftest import CHART, JOBS, ROOT, Render, laid_over, nested
from .matrix import MINIO, MONITORED, NODES, SERVICES, SETTINGS

TEMPLATES = sorted(path for path in (CHART / "templates").rglob("*") if path.is_file())


def fields(block: BaseModel, path: str = "") -> Iterator[tuple[str, Any]]:
    """Path and default of every value that is no block."""
    for name, field in type(block).model_fields.items():
        value, here = getattr(block, name), f"{path}{field.alias}"
        if isinstance(value, BaseModel):
            yield from fields(value, f"{here}.")
        else:
            yield here, value


def test_values_yaml_holds_the_defaults_of_the_models() -> None:
    assert yaml.safe_load((CHART / "values.yaml").read_text()) == Values().model_dump(by_alias=True, exclude_none=True)


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.name)
def test_every_value_that_a_template_reads_is_declared(path: Path) -> None:
    text = path.read_text()
    declared = {"run", "run.name", "run.labeller", *(name for name, _ in fields(Values()))}
    declared |= {".".join(name.split(".")[:end]) for name in declared for end in (1, 2, 3)}
    read = re.findall(r"\.Values\.(\w+(?:\.\w+)*)", text)
    for alias, place in re.findall(r"\$(\w+) := \$?\w*(?:\.root)?\.Values((?:\.\w+)*) ", text):
        read += [f"{place}.{name}".strip(".") for name in re.findall(rf"\${alias}\.(\w+(?:\.\w+)*)", text)]
    for name in read:
        assert name in declared, name
    settings = {field.alias for model in (TrainerStage, ShardedStage, Conductor) for field in model.model_fields.values()}
    for name in re.findall(r"(?:\$pod|\$trainer|\.pod)\.(\w+)", text):
        assert name in settings | {"path"}, name


EVERYTHING: dict[str, Any] = {
    **MINIO, **MONITORED, **NODES,
    "objectStore": {"enabled": True}, "store": {"existingSecret": "keys"}, "hub": {"existingSecret": "hub"},
    "keys": SERVICES, "networkPolicies": {"enabled": True}, "allowUpgrade": True,
}  # fmt: skip
"""Values with which every other value counts."""
SAMPLES: dict[str, Any] = {
    **SETTINGS,
    "image": {"tag": "own"}, "resources": {"limits": {"memory": "123Mi"}}, "storageClassName": "fast", "lingerSeconds": 5,
    "url": "s3://another", "endpoint": "https://s3.example.com", "pullSecrets": ["another"],
    "digest": f"sha256:{'1' * 64}", "pullPolicy": "Always", "renderMode": "skipIfMissing", "preset": "l40s",
    "metricsFrom": [{"podSelector": {}}], "apiServerPorts": [8443], "extraEgress": [{"ports": [{"port": 1}]}],
    "labels": {"more": "x"}, "annotations": {"more": "x"}, "alertLabels": {"more": "x"}, "size": "7Gi", "workSize": "7Gi",
    "tmpSize": "7Gi", "shmSize": "7Gi", "presets": {"a100": {"nodes": {"a/gpu": ["x"]}}},
    "backoffLimit": 7, "activeDeadlineSeconds": 7, "terminationGracePeriodSeconds": 7, "startupTimeoutSeconds": 7,
    "unschedulableTimeoutSeconds": 7,
}  # fmt: skip


def changed(name: str, value: Any) -> Any:
    """Another value that is allowed in its place."""
    key = name.rsplit(".", 1)[-1]
    if key in SAMPLES and value != SAMPLES[key]:
        return SAMPLES[key]
    return not value if isinstance(value, bool) else value + 1 if isinstance(value, int) else f"{value}x"


def test_every_value_changes_something(render_unchecked: Render) -> None:
    def outcome(values: dict[str, Any]) -> str:
        try:
            rendered = render_unchecked(values, upgrade=True)
        except helm.HelmRenderError as error:
            return str(error)
        return rendered.text + rendered.notes

    base = outcome(EVERYTHING)
    assert "kind: NetworkPolicy" in base
    merged = json.loads(json.dumps(laid_over(yaml.safe_load((CHART / "values.yaml").read_text()), EVERYTHING)))
    without_effect = []
    for number, (name, default) in enumerate(fields(Values())):
        inherited = re.match(rf"stages\.(\w+)\.({'|'.join(Defaults.model_json_schema()['properties'])})$", name)
        if inherited and inherited[1] != STAGES[number % len(STAGES)]:
            continue  # one template renders all stages: each setting is tried on one of them
        now = merged
        for key in name.split("."):
            now = now.get(key, default) if isinstance(now, dict) else default
        if outcome(laid_over(EVERYTHING, nested(name, changed(name, now)))) == base:
            without_effect.append(name)
    assert without_effect == []


def test_every_stage_takes_every_setting_of_the_defaults() -> None:
    for _, stage in Values().stages:
        assert set(Defaults.model_fields) < set(type(stage).model_fields)


def closed(schema: Any, where: str = "") -> Iterator[str]:
    """Places of a schema where a key that nobody declared would pass."""
    if isinstance(schema, list):
        for item in schema:
            yield from closed(item, where)
    elif isinstance(schema, dict):
        if (
            isinstance(schema.get("properties"), dict)
            and schema.get("additionalProperties") is not False
            and "allOf" not in schema
        ):
            yield where
        for key, value in schema.items():
            yield from closed(value, f"{where}/{key}") if key not in ("if", "description") else ()


def test_every_block_of_the_schema_is_closed() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())
    assert len(schema["$defs"]) > 80
    assert list(closed(schema)) == []


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ("stags", {}, "at '': additional properties 'stags' not allowed"),
        ("stages.trainer.gpu", 1, "at '/stages/trainer': additional properties 'gpu' not allowed"),
        ("stages.traner.gpus", 1, "at '/stages': additional properties 'traner' not allowed"),
        ("stages.merger.shards", 2, "at '/stages/merger': additional properties 'shards' not allowed"),
        ("defaults.resources.limit", {}, "at '/defaults/resources': additional properties 'limit' not allowed"),
        ("defaults.tolerations", [{"ky": "x"}], "at '/defaults/tolerations/0': additional properties 'ky' not allowed"),
        ("defaults.extraVolumes", [{"name": "x", "hostPath": {"path": "/"}}],
         "at '/defaults/extraVolumes/0': additional properties 'hostPath' not allowed"),
        ("conductor.gpus", 1, "at '/conductor': additional properties 'gpus' not allowed"),
        ("run.trainr", {}, "at '/run': additional properties 'trainr' not allowed"),
        ("run.trainer.batchsize", 8, "at '/run/trainer': additional properties 'batchsize' not allowed"),
        ("run.labeller.source.sidepx", 8, "at '/run/labeller/source': additional properties 'sidepx' not allowed"),
        ("run.labeller.teacher", {"model": "x", "u": "y"}, "at '/run/labeller/teacher': additional properties 'u' not allowed"),
        ("run.labeller.source.kind", "digit", "at '/run/labeller/source/kind': value must be one of 'archive', 'coco', 'digits'"),
        ("run.device.canvas_px", "small", "at '/run/device/canvas_px': got string, want null or integer"),
        ("run.device.canvas_px", 4, "at '/run/device/canvas_px': minimum: got 4, want 8"),
        ("run.task.classes", [{"a": "x", "b": "y"}], "at '/run/task/classes/0': maxProperties: got 2, want 1"),
        ("run.name", "Pets", "at '/run/name': 'Pets' does not match pattern "),
        ("stages.trainer.gpus", "one", "at '/stages/trainer/gpus': got string, want integer"),
        ("store.url", "gs://bucket", "at '/store/url': 'gs://bucket' does not match pattern "),
        ("defaults.workSize", "much", "at '/defaults/workSize': 'much' does not match pattern "),
        ("image.registry", 1, "at '/image/registry': got number, want string"),
    ],
)  # fmt: skip
def test_a_wrong_key_or_value_is_refused_before_anything_is_made_and_names_its_path(
    render: Render, path: str, value: Any, said: str
) -> None:
    with pytest.raises(helm.HelmValuesError) as error:
        render(nested(path, value))
    assert said in str(error.value)
    assert str(error.value).startswith(
        "values don't meet the specifications of the schema(s) in the following chart(s):\npocketvlm:"
    )


@pytest.mark.parametrize("job", JOBS)
def test_the_recipe_arrives_as_a_laptop_reads_it_and_so_do_the_ids(render: Render, job: str, tmp_path: Path) -> None:
    here = read_run_file(ROOT / "jobs" / f"{job}.yaml")
    (tmp_path / "run.yaml").write_text(render(job=job).one("ConfigMap", f"{job}-run")["data"]["run.yaml"])
    there = read_run_file(tmp_path / "run.yaml")
    assert there.run == here.run
    assert list(there.run.task.classes) == list(here.run.task.classes)
    for stage in STAGES if job != "solar" else STAGES[1:]:  # solar's images are not in the repository
        if job in ("digits", "solar"):
            settings = [load_stage(stage).settings(run_file.run, here.folder) for run_file in (here, there)]
            assert canonical_json(settings[0]) == canonical_json(settings[1])


@pytest.mark.parametrize("question", [
    "=", "<<", "~", "null", "yes", "y", "0o7", "1_0", "1:30", "1e5", ".5", "2001-01-01", "!x", "&a", "- a", "a: b #c", " a ",
    "a\tb", "a\r\nb", "a\n\n", "\n a\n  b", "'\"", "{a}", "é😀", "<b>&", "{{ .Values }}", "a\\nb", "---", "#",
])  # fmt: skip
def test_a_question_of_any_text_arrives_byte_for_byte(render_unchecked: Render, question: str, tmp_path: Path) -> None:
    values = {"run": {"task": {"question": question, "classes": [{question.strip(): question}, {"b": ""}]},
                      "trainer": {"phases": [{"learning_rate": 2e-7}]}, "labeller": {"max_pixels": 123456789},
                      "device": {"canvas_px": None}}}  # fmt: skip
    found = yaml.safe_load(render_unchecked(values).one("ConfigMap", "digits-run")["data"]["run.yaml"])["run"]
    assert found["task"]["question"] == question
    assert found["task"]["classes"][0] == {question.strip(): question}
    assert float(found["trainer"]["phases"][0]["learning_rate"]) == 2e-7
    assert found["labeller"]["max_pixels"] == 123456789
    assert found["device"]["canvas_px"] is None
