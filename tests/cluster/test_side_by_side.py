"""Two releases in one namespace, and two runs that publish under one name."""

from __future__ import annotations

import json
from typing import Any

import pytest
from runs import SMALL

from pocketvlm.artifacts.run_record import run_id
from pocketvlm.stages.stage import STAGES

from .conftest import Namespace, Release, stored_at

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def both(namespace: Namespace, small_on_cluster: Release) -> tuple[Release, Release]:
    """Two recipes, one release name, one store, at the same time."""

    def install(release: str, seed: int) -> Release:
        recipe: dict[str, Any] = {"name": "twins", **SMALL, "trainer": {**SMALL["trainer"], "seed": seed}}
        return namespace.install(release, stored_at("twins"), {"run": recipe})

    first, second = install("left", 1), install("right", 2)
    first.complete(600)
    second.complete(600)
    return first, second


def test_each_has_its_own_run_and_its_own_weights(both: tuple[Release, Release]) -> None:
    first, second = both
    assert run_id(first.run_file.run) != run_id(second.run_file.run)
    assert first.artifact("labeller", "twins").id == second.artifact("labeller", "twins").id
    for stage in STAGES[1:]:
        assert first.artifact(stage, "twins").id != second.artifact(stage, "twins").id


def test_both_are_released_and_the_latest_is_one_of_them_whole(both: tuple[Release, Release]) -> None:
    store = both[0].namespace.store("twins")
    latest = json.loads(store.read("releases/twins/latest.json"))
    assert len(latest["history"]) == 2
    runs = set()
    for version in latest["history"]:
        release = json.loads(store.read(f"releases/twins/{version}/release.json"))
        runs.add(release["run"])
        owner = next(one for one in both if run_id(one.run_file.run) == release["run"])
        ggufs = {entry.sha256 for entry in owner.artifact("quantiser", "twins").files}
        shipped = {file["sha256"] for file in release["files"] if file["role"] in ("text_model", "mmproj")}
        assert shipped <= ggufs
    assert runs == {run_id(one.run_file.run) for one in both}


def test_neither_conductor_touched_the_others_jobs(both: tuple[Release, Release]) -> None:
    first, second = both
    assert "right-" not in first.logs()
    assert "left-" not in second.logs()
