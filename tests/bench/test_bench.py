"""The benchmark runs to its end on the tiny student, and compares equal work."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Result:
    """What `python -m bench --quick` printed and wrote."""

    table: str
    data: dict[str, Any]

    def comparison(self, word: str) -> dict[str, Any]:
        (found,) = [row for row in self.data["comparisons"] if word in row["name"]]
        return found


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> Result:
    out = tmp_path_factory.mktemp("bench")
    command = [sys.executable, "-m", "bench", "--quick", "--out", str(out)]
    done = subprocess.run(command, cwd=ROOT, text=True, capture_output=True)
    assert done.returncode == 0, done.stderr[-4000:]
    (file,) = out.iterdir()
    assert done.stdout.splitlines()[-1] == str(file)
    return Result(done.stdout, json.loads(file.read_text()))


def test_every_comparison_has_a_ratio_and_says_whether_its_goal_is_met(result: Result) -> None:
    assert [row["goal"] for row in result.data["comparisons"]] == [70, 3, 12, None]
    for row in result.data["comparisons"]:
        assert row["ratio"] > 0 and row["cpu_ratio"] > 0
        assert row["met"] == (None if row["goal"] is None else row["ratio"] >= row["goal"])
        assert row["name"] in result.table


def test_the_tuned_rival_starts_from_our_loss(result: Result) -> None:
    """Equal weights, images, tokens and masks on both sides: else the ratio would compare different work."""
    row = result.comparison("tuned")
    ours, rival = row["ours"][0]["notes"], row["rival"][0]["notes"]
    assert ours["first_loss"] == pytest.approx(rival["first_loss"], abs=1e-3)
    assert ours["tokens"] == rival["tokens"]
    assert rival["tiles"] == 2
    assert row["ours"][0]["units"] == row["rival"][0]["units"]


def test_the_newcomer_gets_the_default_seventeen_tiles(result: Result) -> None:
    assert result.comparison("newcomer")["rival"][0]["notes"]["tiles"] == 17


def test_the_first_step_of_the_newcomer_is_not_held_against_him(result: Result) -> None:
    rival = result.comparison("newcomer")["rival"][0]
    assert (rival["units"], rival["notes"]["steps"]) == (1, 2)


def test_scoring_is_also_compared_with_its_vision_features_counted(result: Result) -> None:
    kept, whole = result.comparison("kept features"), result.comparison("features counted")
    assert whole["ratio"] < kept["ratio"]
    assert kept["rival"][0]["notes"]["new_tokens_an_image"] <= 2


def test_ours_counts_every_sample_of_every_epoch_and_the_feature_cache(result: Result) -> None:
    ours = result.comparison("newcomer")["ours"][0]
    assert (ours["units"], ours["notes"]["steps"]) == (24, 3)
    assert ours["seconds"] > 8 * ours["notes"]["feature_seconds_an_image"]


def test_conditions_are_written_down(result: Result) -> None:
    assert {"cpu", "threads", "precision", "versions"} <= result.data["machine"].keys()
    assert result.data["busy"] == (result.data["load"] > result.data["machine"]["threads"] + 0.5)


def test_the_labeller_makes_the_same_dataset_on_one_two_and_four_shards(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "bench.shards", "--images", "40", "--out", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, text=True, capture_output=True)
    assert done.returncode == 0, done.stderr[-4000:]
    (file,) = tmp_path.iterdir()
    assert done.stdout.splitlines()[-1] == str(file)
    figures = json.loads(file.read_text())["figures"]
    assert [(row["shards"], len(row["share_seconds"])) for row in figures] == [(1, 1), (2, 2), (4, 4)]


def test_a_teachers_faults_cost_no_more_calls_than_they_force(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "bench.teacher", "--case", "2", "--images", "150", "--out", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, text=True, capture_output=True)
    assert done.returncode == 0, done.stderr[-4000:]
    (file,) = tmp_path.iterdir()
    assert done.stdout.splitlines()[-1] == str(file)
    (row,) = json.loads(file.read_text())["figures"]
    assert row["billed"] == 150 and row["forced"] > 10
    assert row["calls"] <= 1.01 * (150 + row["forced"])
