"""The labeller with a teacher, a real server on loopback: labels, filters, caps, money, corrections, and no answer paid twice."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from desks import CLASSES, PRICE, Desk
from fake_teacher import FakeTeacher

from pocketvlm.artifacts.artifact import Artifact
from pocketvlm.artifacts.dataset import read_quarantine
from pocketvlm.errors import TeacherUnavailable, UserError


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    with FakeTeacher() as teacher:
        teacher.speaker = type(teacher.speaker)(waver=0.0)
        yield Desk(tmp_path, teacher)


def test_the_teacher_labels_images_that_lie_anywhere(desk: Desk) -> None:
    desk.put([*CLASSES * 4, "none"])
    artifact = desk.label()
    rows = desk.rows(artifact)
    assert {name: row["label"] for name, row in rows.items()} == {name: name[4:-4] for name in rows}
    assert len(rows) == 12
    assert desk.refused(artifact) == {"012-none.jpg": "none_of_these"}
    row = rows["000-fire.jpg"]
    assert (row["answer"], row["question"], row["teacher_votes"]) == ("fire", "Which?", 1)
    assert row["teacher_model"].startswith("fake") and row["teacher_reason"] and row["teacher_request_id"]
    assert row["labelled_by"] == "teacher" and row["teacher_runner_up"] in [*CLASSES, "none"]
    assert 0 < row["teacher_confidence"] <= 1 and row["teacher_cost"] > 0
    assert artifact.facts["teachers"][0]["answers"] == {"answer": 13}
    costs = artifact.measurements()["costs"]
    assert costs["usd"] == pytest.approx(desk.teacher.ledger.usd, abs=1e-5)
    assert costs["usd_per_kept_label"] == pytest.approx(costs["usd"] / 12, abs=1e-5)


def test_another_filter_split_or_run_pays_for_nothing(desk: Desk) -> None:
    desk.put(CLASSES * 4)
    first = desk.label()
    paid = desk.billed
    assert paid == 12
    others = [desk.run_file(min_confidence=0.01), desk.run_file(split={"train": 0.5, "validation": 0.25, "test": 0.25})]
    made = {desk.label(other).id for other in others}
    assert len(made | {first.id}) == 3
    assert desk.billed == paid


@pytest.mark.parametrize(
    "change",
    [{"temperature": 0.5}, {"model": "another"}, {"image_px": 40}, {"detail": "low"}, {"max_answer_tokens": 900}],
    ids=lambda change: next(iter(change)),
)
def test_another_question_is_asked_anew(desk: Desk, change: dict[str, Any]) -> None:
    desk.put(CLASSES * 3)
    desk.label()
    desk.label(desk.run_file(teacher=change))
    assert desk.billed == 18


def test_votes_are_counted_and_little_agreement_is_refused(desk: Desk) -> None:
    desk.put(CLASSES * 12)
    desk.teacher.speaker = type(desk.teacher.speaker)(waver=0.1)
    votes = {"votes": 3, "temperature": 1.0, "seed": 5}
    artifact = desk.label(desk.run_file(teacher=votes, min_agreement=0.9))
    refused = Counter(desk.refused(artifact).values())
    assert refused["low_agreement"] > 0
    assert {row["teacher_votes"] for row in desk.rows(artifact).values()} == {3}
    assert desk.billed == 3 * 36
    assert 0.5 < artifact.facts["agreement"] < 1
    easy = desk.label(desk.run_file(teacher=votes))
    assert desk.billed == 3 * 36
    assert {row["teacher_votes"] for row in desk.rows(easy).values()} >= {2, 3}


def test_a_second_teacher_votes_and_is_compared(desk: Desk) -> None:
    desk.put(CLASSES * 4)
    with FakeTeacher() as other:
        other.speaker = type(other.speaker)(lambda image, labels: "land", waver=0.0)
        second = {"model": "landlubber", "base_url": other.url, "price": PRICE, "image_px": 40}
        artifact = desk.label(desk.run_file(teacher={"votes": 2, "temperature": 1.0}, second_teacher=second))
        assert other.ledger.billed == 12
    assert Counter(row["label"] for row in desk.rows(artifact).values()) == dict.fromkeys(CLASSES, 4)  # two votes against one
    opinion = artifact.facts["second_opinion"]
    assert (opinion["images"], opinion["equal"]) == (12, 4)
    assert ["fire", "land", 4] in opinion["confusion"] and ["land", "land", 4] in opinion["confusion"]
    assert [row["usd"] > 0 for row in artifact.measurements()["costs"]["teachers"]] == [True, True]


def test_answers_that_cannot_be_used_are_kept_out_with_their_reason_and_not_asked_again(desk: Desk) -> None:
    desk.put(CLASSES * 5)
    desk.teacher.faults.next.extend(["refusal", "content_filter", "length"])
    artifact = desk.label(desk.run_file(teacher={"in_flight": 1}))
    kinds = Counter(desk.refused(artifact).values())
    assert kinds == {"teacher_refused": 1, "teacher_filtered": 1, "teacher_cut_off": 1}
    paid = desk.billed
    desk.label(desk.run_file(teacher={"in_flight": 1}, min_confidence=0.01))
    assert desk.billed == paid


def test_the_source_refills_each_class_until_it_is_full_and_no_further(desk: Desk) -> None:
    desk.put(["fire"] * 40 + CLASSES * 60)
    artifact = desk.label(desk.run_file(teacher={"in_flight": 4}, per_class=6))
    assert Counter(row["label"] for row in desk.rows(artifact).values()) == dict.fromkeys(CLASSES, 6)
    assert Counter(desk.refused(artifact).values())["class_full"] >= 34
    # 58 images fill the classes; a piece is 64, and one more may have been begun.
    assert 58 <= desk.billed <= 3 * 64
    assert artifact.facts["images_total"] == 58


def test_a_source_that_ends_before_a_class_is_full_gives_what_it_has(desk: Desk) -> None:
    desk.put(CLASSES * 4)
    artifact = desk.label(desk.run_file(per_class=100))
    assert artifact.facts["images_used"] == 12


def test_balance_cuts_the_larger_classes(desk: Desk) -> None:
    desk.put(CLASSES * 4 + ["fire"] * 10)
    artifact = desk.label(desk.run_file(balance=1.5))
    assert Counter(row["label"] for row in desk.rows(artifact).values()) == {"fire": 6, "land": 4, "water": 4}
    assert Counter(desk.refused(artifact).values()) == {"unbalanced": 8}


def test_no_more_images_are_looked_at_than_max_images(desk: Desk) -> None:
    desk.put(CLASSES * 20)
    assert desk.label(desk.run_file(max_images=12)).facts["images_total"] == desk.billed == 12


def test_the_cap_on_money_is_passed_by_no_more_than_the_calls_in_flight(desk: Desk) -> None:
    desk.put(CLASSES * 40)
    probe = desk.label(desk.run_file(max_images=12))
    each = probe.measurements()["costs"]["usd"] / 12
    desk.teacher.ledger.__init__()  # type: ignore[misc]
    cap = 30 * each
    artifact = desk.label(desk.run_file(teacher={"in_flight": 5}, max_cost_usd=cap), store="other")
    assert cap - each <= desk.teacher.ledger.usd <= cap + 6 * each * 1.5
    kept = sorted(desk.rows(artifact))
    assert kept == [f"{index:03d}-{CLASSES[index % 3]}.jpg" for index in range(len(kept))]
    assert artifact.measurements()["costs"]["usd"] == pytest.approx(desk.teacher.ledger.usd, abs=1e-4)
    assert sum(row["teacher_cost"] for row in desk.rows(artifact).values()) <= cap
    assert set(desk.refused(artifact).values()) == {"over_budget"}


def test_a_persons_word_wins_and_costs_nothing(desk: Desk) -> None:
    desk.put(CLASSES * 5)
    before = desk.rows(desk.label())
    paid = desk.billed
    named = [("000-fire.jpg", "water"), ("001-land.jpg", None), ("002-water.jpg", "water")]
    items = [{"sha256": before[name]["sha256"], "label": label, "source_id": name} for name, label in named]
    path = desk.root / "checked.json"
    path.write_text(json.dumps({"format": "pocketvlm-corrections/1", "run": "test", "dataset": "", "items": items}))
    artifact = desk.label(desk.run_file(corrections="checked.json"))
    after = desk.rows(artifact)
    assert after["000-fire.jpg"]["label"] == after["000-fire.jpg"]["answer"] == "water"
    assert after["002-water.jpg"]["label"] == "water"
    assert (after["000-fire.jpg"]["labelled_by"], after["003-fire.jpg"]["labelled_by"]) == ("person", "teacher")
    assert desk.refused(artifact) == {"001-land.jpg": "corrected_to_none"}
    assert desk.billed == paid
    checked = artifact.facts["corrections"]
    assert (checked["images"], checked["right"]) == (3, 1)


def test_a_person_can_call_back_what_the_teacher_was_not_sure_of(desk: Desk) -> None:
    desk.put([*CLASSES * 4, "none"])
    lost = desk.label()
    folder = lost.fetch(desk.root / "fetched" / lost.id)
    assert {item.reason for item in read_quarantine(folder)} == {"none_of_these"}
    sha256 = hashlib.sha256((desk.root / "images" / "012-none.jpg").read_bytes()).hexdigest()
    path = desk.root / "checked.json"
    path.write_text(json.dumps({"format": "pocketvlm-corrections/1", "items": [{"sha256": sha256, "label": "land"}]}))
    assert desk.rows(desk.label(desk.run_file(corrections="checked.json")))["012-none.jpg"]["label"] == "land"


def test_live_and_batch_make_the_same_dataset(desk: Desk) -> None:
    desk.put(CLASSES * 6)
    price = {**PRICE, "batch_share": 1.0}
    live = desk.label(desk.run_file(teacher={"price": price}), "live")
    batch = desk.label(desk.run_file(teacher={"price": price, "way": "batch", "batch_poll_s": 0.05}), "batch")

    def known(artifact: Artifact) -> dict[str, Any]:
        return {name: {key: value for key, value in row.items() if key not in ("teacher_request_id", "teacher_cost")}
                for name, row in desk.rows(artifact).items()}  # fmt: skip

    assert known(live) == known(batch)
    assert live.id != batch.id  # what a batch costs is another price
    assert desk.teacher.ledger.requests["POST /v1/batches"] == 1


def test_shards_share_the_teachers_work_and_publish_the_same_bytes(desk: Desk) -> None:
    desk.put(CLASSES * 50)
    whole = desk.label(store="whole")
    assert desk.label(store="shared", POCKETVLM_SHARDS=2, JOB_COMPLETION_INDEX=0) is None
    shared = desk.label(store="shared", POCKETVLM_SHARDS=2, JOB_COMPLETION_INDEX=1)
    assert (shared.id, shared.files) == (whole.id, whole.files)


@pytest.mark.parametrize("cap", [{"per_class": 5}, {"max_cost_usd": 1.0}])
def test_a_cap_and_shards_are_refused(desk: Desk, cap: dict[str, Any]) -> None:
    desk.put(CLASSES * 4)
    with pytest.raises(UserError, match=rf"run\.labeller\.{next(iter(cap))}: only a labeller that does all of the work"):
        desk.label(desk.run_file(**cap), POCKETVLM_SHARDS=2, JOB_COMPLETION_INDEX=0)


def test_a_teacher_that_is_away_ends_the_stage_and_what_it_said_before_stays(desk: Desk) -> None:
    desk.put(CLASSES * 8)
    desk.teacher.faults.change({"calls": dict.fromkeys(range(9, 2000), "unavailable")})
    with pytest.raises(TeacherUnavailable):
        desk.label(desk.run_file(teacher={"deadline_s": 1.0, "in_flight": 2}))
    desk.teacher.faults.change({"calls": {}})
    assert desk.label(desk.run_file(teacher={"deadline_s": 1.0, "in_flight": 2})).facts["images_used"] == 24
    assert desk.billed == 24


def test_nothing_of_the_teacher_is_in_what_the_student_is_asked_or_answers(desk: Desk) -> None:
    desk.put(CLASSES * 4)
    for row in desk.rows(desk.label()).values():
        assert (row["question"], row["answer"], row["variants"]) == ("Which?", row["label"], [])
        assert row["teacher_reason"] not in (row["question"], row["answer"])
