"""Pieces of shared work: saved once, seen by all, and checked when they are read."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from pocketvlm.artifacts.partial import Partial
from pocketvlm.artifacts.shares import Shares
from pocketvlm.artifacts.store import Store
from pocketvlm.errors import Corrupt


def test_saved_piece_is_seen_and_read_by_everybody(store: Store, tmp_path: Path) -> None:
    assert _shares(store).saved() == set()
    _shares(store).save((0, "first"), _folder(tmp_path / "a", "text"), 1.5)
    assert _shares(store).saved() == {(0, "first")}
    assert _shares(store).fetch((0, "first"), tmp_path / "to") == 1.5
    assert (tmp_path / "to" / "rows").read_text() == "text"


def test_shares_of_another_number_are_not_there(folder_store: Store, tmp_path: Path) -> None:
    _shares(folder_store, 3).save((0, "first"), _folder(tmp_path / "a", "text"), 1)
    assert _shares(folder_store, 2).saved() == set()


def test_first_to_save_a_piece_wins_and_the_second_reads_its_bytes(store: Store, tmp_path: Path) -> None:
    _shares(store).save((1, "first"), _folder(tmp_path / "a", "winner"), 1)
    late = _folder(tmp_path / "b", "loser")
    _shares(store).save((1, "first"), late, 2)
    assert _shares(store).fetch((1, "first"), late) == 1
    assert (late / "rows").read_text() == "winner"


def test_of_many_that_save_at_once_all_read_the_same(store: Store, tmp_path: Path) -> None:
    folders = [_folder(tmp_path / str(number), f"by {number}") for number in range(8)]

    def work(folder: Path) -> None:
        _shares(store).save((0, "first"), folder, 1)
        _shares(store).fetch((0, "first"), folder)

    threads = [threading.Thread(target=work, args=(folder,)) for folder in folders]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({(folder / "rows").read_text() for folder in folders}) == 1


@pytest.mark.parametrize("damage", ["flipped", "lost", "unreadable"])
def test_damaged_piece_is_corrupt_and_can_be_replaced_without_ever_missing(
    folder_store: Store, tmp_path: Path, damage: str
) -> None:
    shares, folder = _shares(folder_store), _folder(tmp_path / "a", "text")
    shares.save((0, "first"), folder, 1)
    keys = [stored.key for stored in folder_store.list("partial/")]
    file = next(key for key in keys if key.endswith("/rows"))
    if damage == "flipped":
        folder_store.write(file, b"tExt")
    elif damage == "lost":
        folder_store.delete(file)
    else:
        folder_store.write(next(key for key in keys if key.endswith(".json")), b"{")
    with pytest.raises(Corrupt, match="first"):
        shares.fetch((0, "first"), tmp_path / "to")
    assert shares.saved() == {(0, "first")}, "those that count it must go on counting it"
    shares.replace((0, "first"), folder, 2)
    assert shares.fetch((0, "first"), tmp_path / "to") == 2
    assert (tmp_path / "to" / "rows").read_text() == "text"


def test_shares_go_with_the_other_unfinished_work_and_leave_the_neighbours(store: Store, tmp_path: Path) -> None:
    folder = _folder(tmp_path / "a", "text")
    _shares(store).save((0, "first"), folder, 1)
    Shares(store, "datasets", "id10", 2).save((0, "first"), folder, 1)
    partial = Partial(store, "datasets", "id1")
    assert partial.latest(tmp_path / "to") is None, "a piece is no step"
    partial.clear()
    assert _shares(store).saved() == set()
    assert Shares(store, "datasets", "id10", 2).saved() == {(0, "first")}


def _shares(store: Store, count: int = 2) -> Shares:
    return Shares(store, "datasets", "id1", count)


def _folder(folder: Path, text: str) -> Path:
    folder.mkdir(parents=True)
    (folder / "rows").write_text(text)
    (folder / "empty").touch()
    return folder
