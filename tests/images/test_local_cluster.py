"""kind, skaffold and the public workflow cannot run here: what they name must exist, and be what the cluster tests use."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

ROOT = Path(__file__).parents[2]
JOBS = ("labeller", "trainer", "merger", "quantiser", "evaluator", "conductor")
WORKFLOWS = sorted([*ROOT.glob(".github/workflows/*.yaml"), *ROOT.glob("docs/examples/*.yaml")])


def load(path: Path) -> dict[str, Any]:
    return dict(yaml.safe_load(path.read_text()))


def targets() -> set[str]:
    return set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


@pytest.fixture(scope="module")
def skaffold() -> dict[str, Any]:
    return load(ROOT / "skaffold.yaml")


def test_skaffold_builds_every_image_after_its_bases(skaffold: dict[str, Any], dockerfile_of) -> None:
    built: list[str] = []
    for artifact in skaffold["build"]["artifacts"]:
        image = artifact["image"].removeprefix("pocketvlm-")
        assert artifact["docker"] == {"dockerfile": f"images/{image}/Dockerfile"}
        bases = {base["alias"]: base["image"] for base in artifact.get("requires", [])}
        wanted = dict(argument.value.split("=", 1) for argument in dockerfile_of(image).all("ARG"))
        wanted = {name: value.removesuffix(":dev") for name, value in wanted.items() if value.startswith("pocketvlm-")}
        assert bases == wanted
        assert set(bases.values()) <= set(built)
        built.append(artifact["image"])
    assert set(built) == {f"pocketvlm-{path.parent.name}" for path in ROOT.glob("images/*/Dockerfile")}


def test_skaffold_gives_the_chart_repository_tag_and_digest_of_each_image(skaffold: dict[str, Any]) -> None:
    (release,) = skaffold["deploy"]["helm"]["releases"]
    wanted = {}
    for job in JOBS:
        path = job if job == "conductor" else f"stages.{job}"
        for key, name in (("repository", "REPO"), ("tag", "TAG"), ("digest", "DIGEST")):
            wanted[f"{path}.image.{key}"] = f"{{{{.IMAGE_{name}_pocketvlm_{job}}}}}"
    assert release["setValueTemplates"] == wanted


def test_the_chart_takes_every_value_that_skaffold_and_make_set(skaffold: dict[str, Any]) -> None:
    """By its schema, which refuses a key that it does not know."""
    (release,) = skaffold["deploy"]["helm"]["releases"]
    made = re.findall(r"--set ([\w.]+)=", (ROOT / "Makefile").read_text())
    assert made == ["image.registry", "image.tag"]
    values = load(ROOT / release["valuesFiles"][0])
    wanted = {**dict.fromkeys(made, "x"), **release["setValues"], **dict.fromkeys(release["setValueTemplates"], "")}
    for path, value in wanted.items():
        *parents, last = path.split(".")
        block = values
        for key in parents:
            block = block.setdefault(key, {})
        block[last] = value
    jsonschema.validate(values, load(ROOT / release["chartPath"] / "values.schema.json"))


def test_what_skaffold_installs_exists_and_kind_is_chosen_by_its_context(skaffold: dict[str, Any]) -> None:
    (release,) = skaffold["deploy"]["helm"]["releases"]
    (kind,) = skaffold["profiles"]
    (context,) = kind["activation"]
    assert re.fullmatch(context["kubeContext"], f"kind-{load(ROOT / 'kind' / 'cluster.yaml')['name']}")
    assert kind["build"]["local"]["push"] is False
    for path in (release["chartPath"], *release["valuesFiles"], *(patch["value"] for patch in kind["patches"])):
        assert (ROOT / path).exists(), path
    assert release["name"] == load(ROOT / release["valuesFiles"][0])["run"]["name"]


def test_the_node_and_the_registry_of_kind_are_pinned_by_digest() -> None:
    cluster = load(ROOT / "kind" / "cluster.yaml")
    for node in cluster["nodes"]:
        assert re.fullmatch(r"kindest/node:v1\.\d+\.\d+@sha256:[0-9a-f]{64}", node["image"])
    up = (ROOT / "kind" / "up").read_text()
    assert re.search(r"^image=registry:3@sha256:[0-9a-f]{64}$", up, re.MULTILINE)
    assert f"{cluster['name']}-control-plane" in up
    assert f"--name {cluster['name']}" in (ROOT / "kind" / "down").read_text()


def test_the_kind_of_the_workflow_is_that_of_the_node() -> None:
    comment = re.search(r"kind (v\d+\.\d+\.\d+)", (ROOT / "kind" / "cluster.yaml").read_text())
    assert comment and f"sigs.k8s.io/kind@{comment[1]}" in (ROOT / ".github" / "workflows" / "ci.yaml").read_text()


@pytest.mark.parametrize("script", ["up", "down"])
def test_a_script_of_kind_can_be_run(script: str) -> None:
    path = ROOT / "kind" / script
    assert path.stat().st_mode & 0o111
    subprocess.run(["sh", "-n", str(path)], check=True)


def test_kind_runs_what_any_cluster_runs() -> None:
    """One recipe installs, follows and waits; kind only adds its context."""
    def recipe(target: str, *variables: str) -> str:
        done = subprocess.run(["make", "--dry-run", target, *variables], cwd=ROOT, capture_output=True, text=True, check=True)
        return re.sub(r"^make.*\n", "", done.stdout, flags=re.MULTILINE)

    assert recipe("kind-run") == recipe("cluster-run", "CONTEXT=kind-pocketvlm")
    assert recipe("kind-load") == recipe("push-images")
    install = recipe("cluster-run", "RUN=jobs/solar.yaml", "REGISTRY=localhost:5000", "TAG=t1")
    assert re.match(r"helm install solar charts/pocketvlm .*--values jobs/solar.yaml .*"
                    r"--set image.registry=localhost:5000 --set image.tag=t1", install.replace("\\\n", ""))  # fmt: skip


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_a_workflow_uses_actions_by_commit_and_targets_that_exist(path: Path) -> None:
    for job in load(path)["jobs"].values():
        assert job["runs-on"] == "ubuntu-24.04"
        for step in job["steps"]:
            assert ("run" in step) != ("uses" in step)
            assert set(re.findall(r"\bmake ([a-z-]+)", step.get("run", ""))) <= targets()
    uses = re.findall(r"uses: (.*)", path.read_text())
    assert [use for use in uses if not re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", use)] == []


def test_the_workflow_runs_the_tests_and_the_whole_kind_path() -> None:
    jobs = load(ROOT / ".github" / "workflows" / "ci.yaml")["jobs"]
    commands = {name: [step.get("run", "") for step in job["steps"]] for name, job in jobs.items()}
    assert {name: [run for run in runs if run.startswith("make")] for name, runs in commands.items()} == {
        "test": ["make test"],
        "kind": ["make images", "make kind-up", "make kind-load", "make kind-run", "make kind-down"],
    }
