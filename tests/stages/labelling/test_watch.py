"""What a person reads while teachers are asked."""

from __future__ import annotations

import io
from types import TracebackType
from typing import Any

import pytest

from pocketvlm.progress import Progress
from pocketvlm.stages.labelling.watch import Watch, cost_lines
from pocketvlm.teacher.stats import Stats


class Asked:
    """A teacher that has answered so much and waits so long."""

    def __init__(self, wait_s: float = 0.0) -> None:
        self.stats = Stats()
        self.pause_s = wait_s

    def wait_s(self) -> float:
        return self.pause_s

    def ask(self, images: object) -> Any:
        raise AssertionError("a watch asks nobody")

    def __enter__(self) -> Asked:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None: ...


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    monkeypatch.setattr("pocketvlm.progress.LINE_EVERY_S", 0.0)
    return io.StringIO()


def _watch(log: io.StringIO, *clients: Asked, total: int = 10, votes: int = 1, priced: bool = True) -> Watch:
    return Watch(Progress("labeller", log), total, clients, [votes] * len(clients), priced)


def test_without_a_teacher_a_prepared_image_is_through(log: io.StringIO) -> None:
    watch = _watch(log, total=2)
    watch.prepared(1, None)
    watch.prepared(2, "too_small")
    assert log.getvalue().splitlines()[-1] == "labeller   2/2 images · quarantined 1"


def test_an_image_is_through_when_all_its_votes_are_answered_by_all_teachers(log: io.StringIO) -> None:
    first, second = Asked(), Asked()
    watch = _watch(log, first, second, votes=2)
    for done in range(1, 5):
        watch.prepared(done, "corrupt" if done == 4 else None)
    first.stats.outcomes, second.stats.outcomes, second.stats.in_flight = 6, 3, 3
    first.stats.spent_usd = 0.25
    watch.tell()
    line = log.getvalue().splitlines()[-1]
    assert line == "labeller   2/10 images · quarantined 1, answered 9, in flight 3, cost USD 0.25"


def test_answers_of_the_store_and_retries_are_told_apart(log: io.StringIO) -> None:
    teacher = Asked()
    watch = _watch(log, teacher, priced=False)
    watch.prepared(1, None)
    teacher.stats.cached, teacher.stats.retries = 1, 2
    watch.tell()
    assert log.getvalue().splitlines()[-1].endswith("answered 1, of them before 1, in flight 0, retries 2")


def test_nothing_is_said_twice(log: io.StringIO) -> None:
    watch = _watch(log, Asked())
    watch.prepared(1, None)
    before = log.getvalue()
    watch.tell()
    assert log.getvalue() == before


def test_a_settled_piece_is_through_although_equal_images_were_asked_once(log: io.StringIO) -> None:
    teacher = Asked()
    watch = _watch(log, teacher, total=3)
    for done in range(1, 4):
        watch.prepared(done, None)
    teacher.stats.outcomes = 1
    watch.settled(3)
    assert "3/3 images" in log.getvalue().splitlines()[-1]


def test_a_pause_for_quota_is_said_once_with_its_end(log: io.StringIO) -> None:
    teacher = Asked(wait_s=40)
    watch = _watch(log, teacher)
    watch.tell()
    teacher.pause_s = 39
    watch.tell()
    assert log.getvalue().count("waiting for the teacher's quota, until ") == 1


def test_a_short_wait_is_the_pace_of_calls_and_not_said(log: io.StringIO) -> None:
    _watch(log, Asked(wait_s=0.9)).tell()
    assert "quota" not in log.getvalue()


def test_costs_without_a_price_are_calls_and_tokens_alone() -> None:
    costs = {"teachers": [{"model": "m", "calls": 1200, "input_tokens": 5, "output_tokens": 6, "usd": None}], "usd": None,
             "usd_per_kept_label": None}  # fmt: skip
    assert cost_lines(costs) == ["teacher m: 1,200 calls, 5 tokens in and 6 out for the images that were looked at"]
