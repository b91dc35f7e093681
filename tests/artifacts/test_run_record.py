"""Records of runs."""

from __future__ import annotations

import threading

import pytest
import yaml

from pocketvlm.artifacts.run_record import StageRecord, change_record, read_record, run_id, write_recipe
from pocketvlm.artifacts.store import Store
from pocketvlm.errors import Corrupt
from pocketvlm.run_file import Device, Recipe, read_recipe

RECIPE = Recipe.model_validate({
    "name": "digits",
    "task": {"classes": {"one": "a 1", "zwölf": "a 12"}, "question": "Which?\nDigit:"},
    "student": {"model": "tiny"},
    "labeller": {"source": {"kind": "digits"}},
    "trainer": {"phases": [{"method": "full"}]},
})


def test_record_is_read_as_written(store: Store) -> None:
    assert read_record(store, "digits-1", "trainer") is None
    record = StageRecord(stage="trainer", kind="checkpoints", id="x", status="running", started="2026-01-01T00:00:00Z")
    change_record(store, "digits-1", "trainer", lambda before: record)
    done = record.model_copy(update={"status": "done", "seconds": 2.5, "attempts": 2})
    change_record(store, "digits-1", "trainer", lambda before: done)
    assert read_record(store, "digits-1", "trainer") == done
    change_record(store, "digits-1", "trainer", lambda before: None)
    assert read_record(store, "digits-1", "trainer") == done


def test_of_many_that_change_a_record_at_once_nobody_is_lost(store: Store) -> None:
    def begin(before: StageRecord | None) -> StageRecord:
        attempts = before.attempts + 1 if before else 1
        return StageRecord(stage="labeller", kind="datasets", id="x", status="running", started="", attempts=attempts)

    threads = [threading.Thread(target=change_record, args=(store, "digits-1", "labeller", begin)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    record = read_record(store, "digits-1", "labeller")
    assert record is not None and record.attempts == 8


def test_unreadable_record_is_corrupt(folder_store: Store) -> None:
    folder_store.write("runs/digits-1/trainer.json", b"{")
    with pytest.raises(Corrupt, match=r"runs/digits-1/trainer.json"):
        read_record(folder_store, "digits-1", "trainer")


def test_run_id_changes_with_the_recipe() -> None:
    assert run_id(RECIPE) == run_id(RECIPE.model_copy())
    assert run_id(RECIPE).startswith("digits-")
    assert run_id(RECIPE) != run_id(RECIPE.model_copy(update={"version": "2"}))


def test_written_recipe_is_a_run_file(folder_store: Store) -> None:
    run = write_recipe(folder_store, RECIPE)
    data = yaml.safe_load(folder_store.read(f"runs/{run}/run.yaml"))
    assert Recipe.model_validate(data["run"]) == RECIPE
    assert run == run_id(RECIPE)


def test_a_tile_budget_that_was_not_set_is_not_set_by_the_record_and_is_still_read_with_the_recipe(folder_store: Store) -> None:
    """A family without tiles refuses the key, whatever its value."""
    for device in (Device(canvas_px=112), Device(canvas_px=112, longest_edge_px=512)):
        recipe = RECIPE.model_copy(update={"device": device})
        run = write_recipe(folder_store, recipe)
        text = folder_store.read(f"runs/{run}/run.yaml").decode()
        again = Recipe.model_validate(yaml.safe_load(text)["run"])
        assert ("longest_edge_px" in again.device.model_fields_set) == ("longest_edge_px" in device.model_fields_set)
        assert again == recipe and run_id(again) == run
        assert read_recipe(text, "run.yaml") == recipe.model_dump(mode="json")
