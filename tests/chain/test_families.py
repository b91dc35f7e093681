"""Every family from a tiny checkpoint of its real architecture to a scored and released GGUF pair; or refused, with its reason.

Training is one epoch on a few dozen digits: what the students learn does not matter, only that every stage does its work.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import families
import pytest
import yaml
from runs import TINY, job, merged

from pocketvlm.artifacts.artifact import Artifact
from pocketvlm.artifacts.folder import FolderStore
from pocketvlm.cli import main
from pocketvlm.environment import Environment
from pocketvlm.plan import plan
from pocketvlm.progress import Progress
from pocketvlm.run_file import RunFile, check_run_file
from pocketvlm.stages.evaluation.gates import PARITY_NATS
from pocketvlm.stages.stage import STAGES, run_stage
from pocketvlm.student.families import FAMILIES, PARTS, REFUSED, Family

pytestmark = [pytest.mark.chain, pytest.mark.llamacpp]

TRAINED: dict[str, tuple[str, list[str]]] = {
    "SmolVLM": ("lora", ["text"]),
    "Idefics3": ("full", ["connector", "text"]),
    "Qwen2-VL": ("full", ["text"]),
    "Qwen2.5-VL": ("lora", ["vision", "connector", "text"]),
    "Qwen3-VL": ("full", ["vision", "connector", "text"]),
    "Qwen3.5": ("lora", ["connector", "text"]),
    "LFM2-VL": ("lora", ["vision", "connector"]),
}
"""Name of the family -> how it is trained here: over all of them, each method with each kind of parts."""
FILE_NATS = 0.05
"""What the bf16 file may be off: rounding is larger on random weights than on trained ones, for which the gate is PARITY_NATS.
Pixels, tokens and graph are in the layout, and that is held to PARITY_NATS here, for families that are not device-exact too."""


@dataclass(frozen=True)
class Run:
    """A finished run of one family."""

    name: str
    planned: str
    """What `plan` said before."""
    store: FolderStore
    made: dict[str, Artifact]

    @property
    def metrics(self) -> dict[str, Any]:
        metrics: dict[str, Any] = json.loads(self.made["evaluator"].read("metrics.json"))
        return metrics

    def released(self, name: str) -> str:
        """A text file of the release."""
        latest = json.loads(self.store.read("releases/digits/latest.json"))
        return self.store.read(f"releases/digits/{latest['version']}/{name}").decode()


def family(name: str) -> Family:
    return next(family for family in FAMILIES.values() if family.name == name)


def run_file(name: str, model: Path) -> RunFile:
    """jobs/digits.yaml on a few images, with this checkpoint."""
    method, parts = TRAINED[name]
    device = families.DEVICES[name]
    content = job("digits", {
        "student": {"model": str(model)},
        "labeller": {"source": {"limit": 60, "side_px": device["canvas_px"]},
                     "split": {"train": 0.6, "validation": 0.2, "test": 0.2}},
        "trainer": {"phases": [{"method": method, "train": parts, "epochs": 1, "learning_rate": 1e-3}], "batch_size": 12},
        "quantiser": {"types": ["q8_0"], "mmproj": "q8_0"},
        "evaluator": merged(TINY["evaluator"], {"gates": {"max_parity_nats": FILE_NATS if family(name).device_exact else None}}),
    })  # fmt: skip
    content["run"]["device"] = device | {"max_new_tokens": 8}
    return check_run_file(content, model.parent / "run.yaml")


@pytest.fixture(scope="module", params=families.NAMES)
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, built: None) -> Run:
    """All five stages in this process: imports are paid for once."""
    name: str = request.param
    folder = tmp_path_factory.mktemp(name)
    file = run_file(name, families.build(name, folder / "model"))
    environment = Environment(store=str(folder / "store"), scratch=folder / "scratch", threads=1)
    store, planned, made = FolderStore(folder / "store"), plan(file, environment), {}
    for stage in STAGES:
        artifact, _ = run_stage(stage, file, store, environment, Progress(stage))
        assert artifact is not None
        made[stage] = artifact
    return Run(name, planned, store, made)


def test_every_family_of_the_table_is_run_here() -> None:
    assert {family.name for family in FAMILIES.values()} == set(families.NAMES) == set(TRAINED)


def test_the_scored_pair_is_released_with_its_family(run: Run) -> None:
    release = json.loads(run.released("release.json"))
    assert release["family"] == run.metrics["family"] == run.name
    assert {file["role"] for file in release["files"]} >= {"text_model", "mmproj", "prompt", "grammar", "report"}
    assert run.metrics["types"]["q8_0"]["images"] == run.metrics["images"] > 0


def test_llama_server_counts_the_tokens_that_plan_names(run: Run) -> None:
    found = re.search(r"(\d+) visual tokens an image .*, (\d+) tokens a prompt", run.planned)
    assert found
    for pair in run.metrics["types"].values():
        assert pair["prompt_ids_equal"]
        assert pair["prompt_tokens_wrong"] == 0
        assert pair["prompt_tokens"] == [int(found[2])] * 2
    assert 0 < int(found[1]) < int(found[2])


def test_plan_says_which_family_it_is_how_exact_and_how_large(run: Run) -> None:
    assert f"{run.name}, " in run.planned
    assert (" exactly as on the phone" in run.planned) == family(run.name).device_exact
    assert (" not proven to be as on the phone" in run.planned) == (not family(run.name).device_exact)
    assert re.search(r"text: about bf16 [\d.]+ MB, q8_0 [\d.]+ MB .*; mmproj: q8_0, about [\d.]+ MB", run.planned)


def test_exactly_the_trained_parts_changed(run: Run) -> None:
    changed = json.loads(run.made["merger"].read("merge.json"))["changed"]
    assert {part for part in PARTS if changed[part]} == set(TRAINED[run.name][1])


def test_parity_is_a_gate_or_stated_and_the_report_says_which(run: Run) -> None:
    metrics, report = run.metrics, run.released("report.html")
    answer, layout = metrics["parity"]["max_nats"], metrics["layout"]["max_nats"]
    print(f"{run.name}: parity {answer:.4f} nats, layout {layout:.4f} nats")
    assert metrics["device_exact"] == family(run.name).device_exact
    assert f"Parity of {run.name}" in report
    assert f"{answer:.4f} nats" in report
    assert f"Layout: {layout:.4f} nats" in report
    assert ("The family is device-exact" in report) == family(run.name).device_exact
    assert ("The family is not device-exact" in report) == (not family(run.name).device_exact)
    assert answer <= FILE_NATS
    assert layout <= PARITY_NATS


@pytest.mark.parametrize("architecture", REFUSED)
def test_a_family_that_cannot_be_shipped_is_refused_with_its_reason(
    architecture: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import numpy as np
    from safetensors.numpy import save_file

    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text(json.dumps({"architectures": [architecture]}))
    save_file({"model.norm.weight": np.zeros(4, np.float32)}, model / "model.safetensors")
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(job("digits", {"student": {"model": "./model"}})))
    monkeypatch.setenv("POCKETVLM_STORE", str(tmp_path / "store"))
    assert main(["plan", str(tmp_path / "run.yaml")]) == 2
    said = capsys.readouterr().err
    assert architecture in said
    assert REFUSED[architecture] in said
