"""jobs/solar.yaml, jobs/mars.yaml and jobs/food.yaml on generated sets of their layouts: datasets right to the row."""

from __future__ import annotations

import hashlib
import io
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hub_sets import parquet
from mars import write_mars
from PIL import Image
from plates import content_of, draw
from runs import TINY, job, merged

from pocketvlm.artifacts.artifact import Artifact
from pocketvlm.artifacts.dataset import SPLITS
from pocketvlm.artifacts.folder import FolderStore
from pocketvlm.environment import Environment
from pocketvlm.progress import Progress
from pocketvlm.run_file import RunFile, check_run_file
from pocketvlm.stages.stage import run_stage
from pocketvlm.student.pixels import letterbox
from pocketvlm.student.tasks import kind_of
from pocketvlm.student.variants import variants

SOLAR = {
    "Clean": "clean", "Dusty": "dusty", "Bird-drop": "bird droppings", "Snow-Covered": "snow",
    "Physical-Damage": "physical damage", "Electrical-damage": "electrical damage",
}  # fmt: skip


def read(name: str, folder: Path, changes: dict[str, Any]) -> RunFile:
    return check_run_file(job(name, merged(TINY, changes)), folder / "run.yaml")


def label(run_file: RunFile, folder: Path) -> Artifact:
    environment = Environment(POCKETVLM_SCRATCH=folder / "scratch", POCKETVLM_THREADS=2)
    artifact, _ = run_stage("labeller", run_file, FolderStore(folder / "store"), environment, Progress("labeller", io.StringIO()))
    assert artifact is not None
    return artifact


def rows(artifact: Artifact, folder: Path) -> dict[str, dict[str, Any]]:
    """By source id, with the split."""
    there = artifact.fetch(folder / "dataset")
    tables = [(split, pq.read_table(path)) for split in SPLITS for path in there.glob(f"{split}-*.parquet")]
    return {row["source_id"]: {**row, "split": split} for split, table in tables for row in table.to_pylist()}


def pixels(row: dict[str, Any]) -> bytes:
    with Image.open(io.BytesIO(row["image"]["bytes"])) as image:
        return image.tobytes()


def test_solar_on_six_class_folders(tmp_path: Path) -> None:
    dice = np.random.default_rng(3)
    pictures: dict[str, Image.Image] = {}
    for folder in SOLAR:
        (tmp_path / "solar" / folder).mkdir(parents=True)
        for index in range(20):
            noise_HWC = dice.integers(0, 256, (5, 7, 3), dtype=np.uint8)
            picture = Image.fromarray(noise_HWC).resize((90, 60), Image.Resampling.BICUBIC)
            name = f"{folder}/{folder} ({index + 1}).png"
            picture.save(tmp_path / "solar" / name)
            pictures[name] = picture
    run_file = read("solar", tmp_path, {"labeller": {"source": {"path": "solar"}}})
    found = rows(label(run_file, tmp_path), tmp_path)
    assert {name: row["label"] for name, row in found.items()} == {name: SOLAR[name.split("/")[0]] for name in pictures}
    assert Counter((row["label"], row["split"]) for row in found.values()) == {
        (name, split): count for name in SOLAR.values() for split, count in zip(SPLITS, (14, 2, 4), strict=True)
    }
    task = run_file.run.task
    for name, row in found.items():
        assert (row["question"], row["answer"]) == (task.question, row["label"])
        assert pixels(row) == letterbox(pictures[name], 32).tobytes()
        expected = variants(task, row["sha256"], row["label"]) if row["split"] == "train" else []
        assert [(pair["question"], pair["answer"]) for pair in row["variants"]] == expected
        assert len(expected) == (2 if row["split"] == "train" else 0)


@pytest.mark.parametrize(("shards", "answer"), [(1, "label"), (3, "reasoning")])
def test_mars_on_parquet_of_the_hubs_kind(tmp_path: Path, shards: int, answer: str) -> None:
    expected = write_mars(tmp_path / "mars", 6, side_px=40, shards=shards, row_group_rows=16)
    run_file = read("mars", tmp_path, {
        "task": {"answer": "label", "reasons": []} if answer == "label" else {},
        # Waves of one class that are shifted a little are cut copies of each other to the labeller, as they are.
        "labeller": {"source": {"path": "mars", "dataset": None, "licence": "CC BY 4.0"}, "near_copies": False},
    })  # fmt: skip
    found = rows(label(run_file, tmp_path), tmp_path)
    assert len(found) == len(expected) == 90
    cells = [cell for path in (tmp_path / "mars").rglob("*.parquet") for cell in pq.read_table(path)["image"].to_pylist()]
    originals = {hashlib.sha256(cell["bytes"]).hexdigest(): cell["bytes"] for cell in cells}
    for item in expected:
        row = found[item.source_id]
        assert (row["label"], row["licence"], row["sha256"]) == (item.label, "CC BY 4.0", item.sha256)
        reasons = kind_of(run_file.run.task).templated(item.label) if answer == "reasoning" else []
        assert row["answer"] in ([f"Reasoning: {reason}\nAnswer: {item.label}" for reason in reasons] or [item.label])
        assert row["label_id"] == list(run_file.run.task.classes).index(item.label)
        with Image.open(io.BytesIO(originals[item.sha256])) as original:
            assert pixels(row) == letterbox(original.convert("RGB"), 32).tobytes()


def test_food_on_parquet_with_its_fields_in_one_column(tmp_path: Path) -> None:
    contents, rows_ = [], []
    for number in range(40):
        dice = np.random.default_rng([5, number])
        contents.append(content_of(dice))
        out = io.BytesIO()
        draw(contents[-1], dice).save(out, "PNG")
        # Another order of the keys than the task's, as Arrow gives them.
        cell = dict(sorted(contents[-1].items()))
        rows_.append({"image": {"bytes": out.getvalue(), "path": None}, "image_name": f"{number}.png", "output_label_json": cell})
    (tmp_path / "food").mkdir()
    (tmp_path / "food" / "train-00000-of-00001.parquet").write_bytes(parquet(rows_))
    run_file = read("food", tmp_path, {
        "labeller": {"source": {"path": "food", "dataset": None, "licence": "CC0-1.0"}, "near_copies": False},
    })  # fmt: skip
    found = rows(label(run_file, tmp_path), tmp_path)
    assert [json.loads(found[f"train/{number:08d}"]["label"]) for number in range(40)] == contents
    assert {tuple(json.loads(row["label"])) for row in found.values()} == {tuple(run_file.run.task.fields)}
    assert all(row["answer"] == row["label"] and " " not in row["label"].split(":")[0] for row in found.values())
