from __future__ import annotations

import hashlib
import json
import multiprocessing
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pocketvlm.artifacts.folder import FolderStore
from pocketvlm.artifacts.store import Store
from pocketvlm.errors import Corrupt, StoreUnavailable
from pocketvlm.teacher.answers import Outcome, Usage
from pocketvlm.teacher.journal import TOGETHER, Journal

KEY = "0123456789abcdef"
ROOT = f"answers/{KEY}/"


def outcome(number: int, reason: str = "so", vote: int = 0) -> Outcome:
    image = hashlib.sha256(b"%d" % number).hexdigest()
    answer = {"label": "fire", "reason": reason, "confidence": 0.5}
    return Outcome(image=image, vote=vote, kind="answer", answer=answer, model="m", request_id="r", usage=Usage(input_tokens=3))


@pytest.fixture
def store(tmp_path: Path) -> FolderStore:
    return FolderStore(tmp_path / "store")


@pytest.fixture
def journal(store: Store, tmp_path: Path) -> Iterator[Journal]:
    with Journal(store, KEY, tmp_path / "scratch") as journal:
        yield journal


def segments(store: Store) -> list[str]:
    return [stored.key for stored in store.list(ROOT) if stored.key.endswith(".jsonl")]


def lines(store: Store) -> list[str]:
    return [line for key in segments(store) for line in store.read(key).decode().splitlines()]


def read_again(store: Store, folder: Path, wanted: Outcome) -> Outcome | None:
    with Journal(store, KEY, folder / "other") as other:
        return other.find(wanted.image, wanted.vote)


class Watched(FolderStore):
    """Counts, waits, or fails, as told."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.writes = self.reads = 0
        self.free = threading.Event()
        self.free.set()
        self.broken = False

    def read(self, key: str) -> bytes:
        self.reads += 1
        return super().read(key)

    def write(self, key: str, data: bytes) -> None:
        self.free.wait(10)
        if self.broken:
            raise StoreUnavailable("the store is gone")
        self.writes += 1
        super().write(key, data)


def test_what_is_recorded_is_in_the_store_before_record_returns(journal: Journal, store: Store, tmp_path: Path) -> None:
    journal.record(outcome(1))
    assert [json.loads(line)["image"] for line in lines(store)] == [outcome(1).image]
    assert journal.find(outcome(1).image, 0) == outcome(1)
    assert read_again(store, tmp_path, outcome(1)) == outcome(1)


def test_every_kind_and_vote_comes_back_as_it_was(journal: Journal, store: Store, tmp_path: Path) -> None:
    image, usage = outcome(1).image, Usage(batched=True)
    refused = Outcome(image=image, vote=1, kind="refused", detail="no \u2028 \x85 line", usage=usage, calls=2)
    journal.record(outcome(1))
    journal.record(refused)
    assert read_again(store, tmp_path, refused) == refused
    assert read_again(store, tmp_path, outcome(1)) == outcome(1)
    assert journal.find(outcome(1).image, 2) is None
    assert not journal.knows(outcome(1).image, 2)


def test_what_waits_goes_into_one_segment(tmp_path: Path) -> None:
    store = Watched(tmp_path / "store")
    with Journal(store, KEY, tmp_path / "scratch") as journal:
        store.free.clear()
        first = journal.submit(outcome(0))
        others = [journal.submit(outcome(number)) for number in range(1, 50)]
        assert not first.done()
        store.free.set()
        for future in others:
            future.result(10)
    assert store.writes <= 3
    assert len(lines(store)) == 50


def test_records_from_many_threads_are_all_kept(journal: Journal, store: Store) -> None:
    with ThreadPoolExecutor(16) as threads:
        list(threads.map(lambda number: journal.record(outcome(number)), range(200)))
    assert len(set(lines(store))) == 200


def test_small_segments_are_put_together_without_losing_a_line(journal: Journal, store: Store, tmp_path: Path) -> None:
    for number in range(2 * TOGETHER + 5):
        journal.record(outcome(number))
    journal.close()
    assert len(segments(store)) <= 2 + 5
    assert len(lines(store)) == 2 * TOGETHER + 5
    for number in range(0, 2 * TOGETHER + 5, 20):
        assert read_again(store, tmp_path, outcome(number)) == outcome(number)


def test_of_two_answers_to_one_question_the_smaller_line_counts_everywhere(store: Store, tmp_path: Path) -> None:
    with Journal(store, KEY, tmp_path / "a") as one, Journal(store, KEY, tmp_path / "b") as other:
        assert one.find(outcome(1).image, 0) is other.find(outcome(1).image, 0) is None
        one.record(outcome(1, "zebra"))
        other.record(outcome(1, "aardvark"))
        assert one.find(outcome(1).image, 0) == outcome(1, "zebra")
        one.refresh()
        other.refresh()
        assert one.find(outcome(1).image, 0) == other.find(outcome(1).image, 0) == outcome(1, "aardvark")
    assert read_again(store, tmp_path, outcome(1)) == outcome(1, "aardvark")


@pytest.mark.parametrize("damage", ["cut", "flipped", "foreign"])
def test_a_damaged_segment_is_named_and_not_passed_over(journal: Journal, store: Store, tmp_path: Path, damage: str) -> None:
    journal.record(outcome(1))
    key = segments(store)[0]
    data = store.read(key)
    if damage == "foreign":
        data = b"not an answer\n"
        store.delete(key)
        key = f"{ROOT}{hashlib.sha256(data).hexdigest()[:16]}.jsonl"
    store.write(key, {"cut": data[:-9], "flipped": data.replace(b"so", b"no"), "foreign": data}[damage])
    with Journal(store, KEY, tmp_path / "other") as other:
        for _ in range(2):  # and is not taken for half read
            with pytest.raises(Corrupt, match=key):
                other.find(outcome(1).image, 0)


def test_a_store_that_fails_is_told_to_who_recorded(tmp_path: Path) -> None:
    store = Watched(tmp_path / "store")
    with Journal(store, KEY, tmp_path / "scratch") as journal:
        journal.record(outcome(1))
        store.broken = True
        with pytest.raises(StoreUnavailable, match="gone"):
            journal.record(outcome(2))
        assert journal.find(outcome(2).image, 0) is None
        store.broken = False
        journal.record(outcome(2))
    assert len(lines(store)) == 2


def test_an_outcome_whose_asker_has_gone_is_kept_all_the_same(tmp_path: Path) -> None:
    store = Watched(tmp_path / "store")
    with Journal(store, KEY, tmp_path / "scratch") as journal:
        store.free.clear()
        journal.submit(outcome(0))
        gone = journal.submit(outcome(1))
        other = journal.submit(outcome(2))
        gone.cancel()
        store.free.set()
        other.result(10)
    assert len(lines(store)) == 3


def test_the_question_is_described_once(journal: Journal, store: Store) -> None:
    journal.describe({"model": "first"})
    journal.describe({"model": "second"})
    assert json.loads(store.read(f"{ROOT}question.json")) == {"model": "first"}
    assert journal.find(outcome(1).image, 0) is None


def test_the_index_is_gone_after_the_end(journal: Journal, tmp_path: Path) -> None:
    journal.record(outcome(1))
    assert list((tmp_path / "scratch").iterdir())
    journal.close()
    assert list((tmp_path / "scratch").iterdir()) == []


def test_nothing_is_read_before_the_first_use(tmp_path: Path) -> None:
    store = Watched(tmp_path / "store")
    with Journal(store, KEY, tmp_path / "scratch") as journal:
        journal.record(outcome(1))
    reads = store.reads
    with Journal(store, KEY, tmp_path / "scratch") as journal:
        assert store.reads == reads
        assert journal.knows(outcome(1).image, 0)
        assert store.reads == reads + 1


def _record_many(root: Path, scratch: Path, start: int) -> None:
    with Journal(FolderStore(root), KEY, scratch) as journal:
        for number in range(start, start + 150):
            journal.record(outcome(number, f"by {start}"))


def test_processes_that_write_and_put_together_at_once_lose_nothing(tmp_path: Path) -> None:
    """One reads all the while: segments go while it lists."""
    context = multiprocessing.get_context("fork")
    writers = [
        context.Process(target=_record_many, args=(tmp_path / "store", tmp_path / f"scratch-{start}", start)) for start in (0, 75)
    ]
    for writer in writers:
        writer.start()
    store = FolderStore(tmp_path / "store")
    while any(writer.is_alive() for writer in writers):
        with Journal(store, KEY, tmp_path / "reader") as journal:
            journal.knows(outcome(0).image, 0)
    for writer in writers:
        writer.join(30)
        assert writer.exitcode == 0
    with Journal(store, KEY, tmp_path / "reader") as journal:
        found = [journal.find(outcome(number).image, 0) for number in range(225)]
    assert [one and (one.answer or {})["reason"] for one in found] == ["by 0"] * 150 + ["by 75"] * 75
