"""Work in progress: the newest whole step of any attempt."""

from __future__ import annotations

from pathlib import Path

import pytest

from pocketvlm.artifacts.partial import Partial
from pocketvlm.artifacts.store import Store


def test_nothing_saved_is_nothing_to_go_on_from(folder_store: Store, tmp_path: Path) -> None:
    assert _partial(folder_store).latest(tmp_path / "to") is None


def test_newest_step_comes_back_whatever_lay_in_the_folder(store: Store, tmp_path: Path) -> None:
    partial = _partial(store)
    for step in (9, 100):
        partial.save(step, _folder(tmp_path / str(step), f"weights {step}"))
    (tmp_path / "to").mkdir()
    (tmp_path / "to" / "old").write_text("of another step")
    assert _partial(store).latest(tmp_path / "to") == 100
    assert (tmp_path / "to" / "sub" / "weights").read_text() == "weights 100"
    assert [path.name for path in (tmp_path / "to").iterdir()] == ["sub"]


def test_step_of_a_faster_attempt_is_taken(folder_store: Store, tmp_path: Path) -> None:
    _partial(folder_store).save(5, _folder(tmp_path / "5", "slow"))
    _partial(folder_store).save(7, _folder(tmp_path / "7", "fast"))
    assert _partial(folder_store).latest(tmp_path / "to") == 7


def test_two_newest_steps_of_an_attempt_are_kept(folder_store: Store, tmp_path: Path) -> None:
    one, two = _partial(folder_store), _partial(folder_store)
    one.save(1, _folder(tmp_path / "1", "one"))
    assert len(_steps(folder_store)) == 1
    for step in (2, 3, 4):
        two.save(step, _folder(tmp_path / str(step), "two"))
    assert _steps(folder_store) == {3, 4}, "steps of an attempt that is further replace all older ones"


def test_attempt_that_is_behind_deletes_nothing_of_one_ahead(folder_store: Store, tmp_path: Path) -> None:
    ahead, behind = _partial(folder_store), _partial(folder_store)
    for step in (50, 60):
        ahead.save(step, _folder(tmp_path / str(step), "ahead"))
    for step in (10, 20, 30):
        behind.save(step, _folder(tmp_path / str(step), "behind"))
    assert _steps(folder_store) == {20, 30, 50, 60}


@pytest.mark.parametrize("damage", ["flipped", "lost", "unreadable"])
def test_damaged_step_is_skipped_with_a_warning(folder_store: Store, tmp_path: Path, damage: str) -> None:
    partial = _partial(folder_store)
    for step in (1, 2):
        partial.save(step, _folder(tmp_path / str(step), f"weights {step}"))
    keys = [stored.key for stored in folder_store.list("partial/") if "/000000002/" in stored.key]
    weights = next(key for key in keys if key.endswith("weights"))
    if damage == "flipped":
        folder_store.write(weights, b"weights 3")
    elif damage == "lost":
        folder_store.delete(weights)
    else:
        folder_store.write(next(key for key in keys if key.endswith("step.json")), b"{")
    warnings: list[str] = []
    assert Partial(folder_store, "checkpoints", "id1", warn=warnings.append).latest(tmp_path / "to") == 1
    assert (tmp_path / "to" / "sub" / "weights").read_text() == "weights 1"
    assert len(warnings) == 1 and "step 2" in warnings[0]


def test_step_without_its_list_does_not_exist(folder_store: Store, tmp_path: Path) -> None:
    folder_store.write("partial/checkpoints/id1/0123456789ab/000000005/files/sub/weights", b"half")
    assert _partial(folder_store).latest(tmp_path / "to") is None


def test_saving_a_step_twice_keeps_the_first(folder_store: Store, tmp_path: Path) -> None:
    partial = _partial(folder_store)
    partial.save(1, _folder(tmp_path / "1", "first"))
    partial.save(1, _folder(tmp_path / "1b", "second"))
    partial.latest(tmp_path / "to")
    assert (tmp_path / "to" / "sub" / "weights").read_text() == "first"


def test_clear_leaves_other_artifacts_alone(store: Store, tmp_path: Path) -> None:
    _partial(store).save(1, _folder(tmp_path / "1", "x"))
    other = Partial(store, "checkpoints", "id10")
    other.save(1, tmp_path / "1")
    store.write("partial/checkpoints/id1/0123456789ab/000000005/files/sub/weights", b"half")
    _partial(store).clear()
    _partial(store).clear()
    assert list(store.list("partial/checkpoints/id1/")) == []
    assert other.latest(tmp_path / "to") == 1


def _partial(store: Store) -> Partial:
    return Partial(store, "checkpoints", "id1")


def _folder(folder: Path, text: str) -> Path:
    (folder / "sub").mkdir(parents=True)
    (folder / "sub" / "weights").write_text(text)
    return folder


def _steps(store: Store) -> set[int]:
    return {int(stored.key.split("/")[4]) for stored in store.list("partial/checkpoints/id1/")}
