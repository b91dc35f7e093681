"""Food's shape on drawn plates: three recipes from one base to released pairs, and one page that holds them beside each other.

The base is the tiny student after it learnt to name single things, as a published model knows what food looks like and not which
fields are asked. From there: all weights at once, jobs/food.yaml's two stages, and jobs/food-lora.yaml's adapters.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from plates import DEVICE, NAMING, TASK, write_plates, write_things
from runs import job, merged

from pocketvlm.artifacts.artifact import Artifact
from pocketvlm.artifacts.folder import FolderStore
from pocketvlm.artifacts.run_record import run_id
from pocketvlm.compare.page import write_comparison
from pocketvlm.environment import Environment, read_environment
from pocketvlm.llamacpp.toolchain import find_toolchain
from pocketvlm.predict import Model
from pocketvlm.progress import Progress
from pocketvlm.report.results import Metrics
from pocketvlm.run_file import RunFile, read_run_file
from pocketvlm.stages.stage import STAGES, run_stage

from ..conftest import kept

pytestmark = [pytest.mark.chain, pytest.mark.llamacpp, pytest.mark.timeout(1500)]

PLATES, THINGS = 800, 1000
FRESH = 29
"""Seed of the plates. PACE was chosen on those of seed 0: none of the images that are measured was looked at for that."""
ALL = ["vision", "connector", "text"]
SIGHT = {"canvas_px": 64, "longest_edge_px": 32}
"""One tile and the overview: 8 visual tokens."""
PACE: dict[str, tuple[str, list[dict[str, Any]]]] = {
    "food": ("food", [{"epochs": 3.5, "learning_rate": 1e-3}, {"epochs": 0.25, "learning_rate": 1e-5}]),
    "food-lora": ("food-lora", [{"epochs": 2.5, "learning_rate": 3e-3}]),
    "food-whole": ("food", [{"epochs": 2.5, "learning_rate": 7e-4, "train": ALL, "part_learning_rates": {"vision": 1e-4}}]),
}
"""Name -> the run file in jobs/ and what its phases have otherwise: few weights, random a minute ago, learn at higher rates."""
EVALUATOR = {"max_images": 40, "parity_images": 4, "golden_images": 2, "answer_threshold": 0.0, "gates": {
    "min_accuracy": 0.0, "max_drop": 1.0, "min_agreement": 0.5, "min_sight": None, "min_valid": 1.0}}  # fmt: skip


@dataclass(frozen=True)
class Kitchen:
    """A folder with pictures and a store, and what cooks in it."""

    folder: Path

    @property
    def environment(self) -> Environment:
        scratch = Path(os.path.relpath(self.folder / "scratch"))  # relative, as the default is
        own = {"store": str(self.folder / "store"), "scratch": scratch, "cache": self.folder / "cache"}
        return read_environment().model_copy(update={**own, "llama_cpp_home": find_toolchain(read_environment()).home})

    @property
    def store(self) -> FolderStore:
        return FolderStore(self.folder / "store")

    def write(self, run: dict[str, Any]) -> RunFile:
        path = self.folder / f"{run['name']}.yaml"
        path.write_text(yaml.safe_dump({"run": run}, sort_keys=False))
        return read_run_file(path)

    def cook(self, run_file: RunFile, stages: tuple[str, ...] = STAGES) -> dict[str, Artifact]:
        """In this process, so that torch is loaded once. What is in the store is not made again."""
        made = {}
        for stage in stages:
            artifact, _ = run_stage(stage, run_file, self.store, self.environment, Progress(stage))
            assert artifact is not None
            made[stage] = artifact
        return made


@pytest.fixture(scope="module")
def kitchen(tmp_path_factory: pytest.TempPathFactory, built: None) -> Kitchen:
    """Pictures on disk."""
    folder = kept("kitchen", tmp_path_factory)
    write_plates(folder / "plates", PLATES, FRESH)
    write_things(folder / "things", THINGS)
    return Kitchen(folder)


def labeller(folder: str) -> dict[str, Any]:
    """To a perceptual hash all tables are near-copies; here what differs between them is what is asked about."""
    return {"source": {"kind": "records", "path": f"{folder}/records.jsonl"}, "near_copies": False,
            "split": {"train": 0.85, "validation": 0.05, "test": 0.1, "seed": 42}}  # fmt: skip


@pytest.fixture(scope="module")
def base(kitchen: Kitchen) -> str:
    """`student.model` of a student that names single things."""
    phase = {"method": "full", "train": ALL, "epochs": 2, "learning_rate": 1e-3, "schedule": "cosine", "warmup_steps": 20}
    run = {"name": "things", "task": NAMING, "device": {**SIGHT, "max_new_tokens": 8}, "student": {"model": "tiny"},
           "labeller": labeller("things"), "trainer": {"phases": [phase], "batch_size": 16}}  # fmt: skip
    made = kitchen.cook(kitchen.write(run), STAGES[:3])
    return f"models/{made['merger'].id}"


def recipe(name: str, base: str) -> dict[str, Any]:
    """One of PACE: `run:` of its file in jobs/ on plates, from the base."""
    file, pace = PACE[name]
    known: dict[str, Any] = job(file)["run"]
    common = {"warmup_steps": 20, "schedule": "cosine"}
    phases = [merged(phase, common, own) for phase, own in zip(known["trainer"]["phases"], pace, strict=False)]
    return {**known, "name": name, "task": TASK, "device": {**DEVICE, **SIGHT}, "student": {"model": base},
            "labeller": labeller("plates"), "trainer": {"phases": phases, "batch_size": 8, "seed": known["trainer"]["seed"]},
            "evaluator": EVALUATOR}  # fmt: skip


@pytest.fixture(scope="module")
def runs(kitchen: Kitchen, base: str) -> dict[str, dict[str, Artifact]]:
    """All three, to the release; they have one dataset."""
    return {name: kitchen.cook(kitchen.write(recipe(name, base))) for name in PACE}


def metrics_of(artifacts: dict[str, Artifact]) -> Metrics:
    return Metrics.model_validate_json(artifacts["evaluator"].read("metrics.json"))


def test_every_answer_inside_the_grammar_is_json_of_the_fields(runs: dict[str, dict[str, Artifact]]) -> None:
    for name, artifacts in runs.items():
        written = metrics_of(artifacts).types["q8_0"].written
        assert written is not None and (written.valid, written.unread) == (1.0, 0), name


def test_lists_are_found_by_the_trained_pair_and_not_by_its_base(runs: dict[str, dict[str, Artifact]]) -> None:
    """F1 over the texts of both lists, on the GGUF."""
    found = metrics_of(runs["food"])
    tuned, base = found.types["q8_0"].list_f1, found.base.list_f1
    assert tuned is not None and base is not None
    assert tuned >= 0.8
    assert base < 0.3


@pytest.mark.parametrize("name", ["food-lora", "food-whole"])
def test_the_other_recipes_learn_too(runs: dict[str, dict[str, Artifact]], name: str) -> None:
    found = metrics_of(runs[name])
    tuned, base = found.types["q8_0"].list_f1, found.base.list_f1
    assert tuned is not None and base is not None
    assert tuned >= base + 0.4


def test_two_stages_leave_vision_alone_first_and_adapters_save_head_and_embeddings(runs: dict[str, dict[str, Artifact]]) -> None:
    first, second = json.loads(runs["food"]["trainer"].read("training.json"))["phases"]
    assert (first["parts"], second["parts"]) == (["connector", "text"], ALL)
    assert not any("vision" in name for name in first["changed"])
    assert any("vision" in name for name in second["changed"])
    (lora,) = json.loads(runs["food-lora"]["trainer"].read("training.json"))["phases"]
    assert (lora["method"], lora["rank"], lora["alpha"]) == ("lora", 16, 16)
    assert sorted(lora["full"]) == ["lm_head.weight", "model.text_model.embed_tokens.weight"]


def test_the_report_has_a_row_for_each_field(kitchen: Kitchen, runs: dict[str, dict[str, Artifact]]) -> None:
    report = kitchen.store.read(f"runs/{run_id(read_run_file(kitchen.folder / 'food.yaml').run)}/report.html").decode()
    for text in ("is_food", "image_title", "food_items", "drink_items", "chrF"):
        assert text in report, text


def test_one_page_holds_the_three_recipes_beside_each_other(
    kitchen: Kitchen, runs: dict[str, dict[str, Artifact]], tmp_path: Path
) -> None:
    named = [str(kitchen.folder / f"{name}.yaml") for name in ("food", "food-lora", "food-whole")]
    path, summary = write_comparison(named, kitchen.environment, tmp_path / "page.html")
    page = path.read_text(encoding="utf-8")
    assert "B against A" in summary and "C against A" in summary
    assert "All runs use one dataset" in page
    for text in ("method", "list f1", "food_<wbr>items", "drink_<wbr>items"):
        assert text in page, text


def test_the_released_pair_answers_with_the_fields(kitchen: Kitchen, runs: dict[str, dict[str, Artifact]]) -> None:
    picture = kitchen.folder / "plates/images/00000.png"
    with Model.open("food", environment=kitchen.environment) as model:
        row = model.predict(picture)
    assert isinstance(row.best, dict)
    assert list(row.best) == ["is_food", "image_title", "food_items", "drink_items"]
    assert row.best["is_food"] in (0, 1) and isinstance(row.best["food_items"], list)
