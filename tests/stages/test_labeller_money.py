"""What labels cost: the cap after a kill and with two teachers, what the record says was paid, and that no chance decides."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from desks import CLASSES, PRICE, Desk
from fake_teacher import KEY, FakeTeacher

from pocketvlm.artifacts.folder import FolderStore
from pocketvlm.environment import Environment, Shard
from pocketvlm.errors import CredentialsError, DataError, RunFileError
from pocketvlm.progress import Progress
from pocketvlm.run_file import RunFile
from pocketvlm.sources.record import Record
from pocketvlm.stages.labelling.pieces import Kept
from pocketvlm.stages.labelling.verdict import Judge, Verdict
from pocketvlm.stages.sharing import Desk as Sharing
from pocketvlm.stages.sharing import Piece
from pocketvlm.stages.stage import run_stage
from pocketvlm.student.tasks import kind_of
from pocketvlm.teacher.answers import Outcome, Usage


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    with FakeTeacher() as teacher:
        teacher.speaker = type(teacher.speaker)(waver=0.0)
        yield Desk(tmp_path, teacher)


class Killing(FolderStore):
    """Ends the process, as it were, once the first piece is saved."""

    def create(self, key: str, data: bytes) -> bool:
        made = super().create(key, data)
        if "shares-of" in key:
            raise KeyboardInterrupt
        return made


def killed(desk: Desk, run_file: RunFile, store: str) -> None:
    environment = Environment(POCKETVLM_SCRATCH=desk.root / "scratch", OPENAI_API_KEY=KEY)
    with pytest.raises(KeyboardInterrupt):
        run_stage("labeller", run_file, Killing(desk.root / store), environment, Progress("labeller", desk.log))


def price_of_one(desk: Desk) -> float:
    """US dollars of an answer; the ledger is empty again."""
    each: float = desk.label(desk.run_file(max_images=12), "probe").measurements()["costs"]["usd"] / 12
    desk.teacher.ledger.__init__()  # type: ignore[misc]
    return each


def verdict(run_file: RunFile, *panel: list[Outcome]) -> Verdict:
    item = Kept(Record("a.jpg"), "0" * 64, 0, (1, 1), b"", Path(), 0, 0, panel)
    return Judge(run_file.run.labeller, kind_of(run_file.run.task), None).verdict(item)


def said(confidence: float, vote: int = 0) -> Outcome:
    answer = {"label": "fire", "confidence": confidence, "reason": "It burns."}
    return Outcome(image="0" * 64, vote=vote, kind="answer", answer=answer, usage=Usage(input_tokens=1000, output_tokens=100))


def test_a_run_that_was_killed_goes_on_with_the_money_that_is_left(desk: Desk) -> None:
    desk.put(CLASSES * 70)
    each = price_of_one(desk)
    cap = 80 * each
    run_file = desk.run_file(teacher={"in_flight": 8}, max_cost_usd=cap)
    whole = desk.label(run_file, "whole")
    desk.teacher.ledger.__init__()  # type: ignore[misc]
    killed(desk, run_file, "killed")
    assert desk.billed < 90
    again = desk.label(run_file, "killed")
    assert desk.teacher.ledger.usd <= cap * 90 / 80
    assert (again.id, again.files, again.facts) == (whole.id, whole.files, whole.facts)
    # What was in flight when it was killed is billed, and no answer tells of it.
    assert -0.5 * each < desk.teacher.ledger.usd - again.measurements()["costs"]["usd"] < 8.5 * each


def test_pieces_that_were_saved_are_looked_at_before_more_are_made(tmp_path: Path) -> None:
    made: list[str] = []

    def share() -> None:
        def fill(folder: Path) -> None:
            made.append(folder.name)
            (folder / "rows.jsonl").write_text("{}")

        sharing = Sharing(FolderStore(tmp_path / "store"), "datasets", "0" * 16, Shard(), tmp_path / "pieces", Progress())
        pieces = [Piece(name, fill) for name in "abcdef"]
        shares = sharing.share(lambda shard: pieces, ahead=2, enough=lambda piece: piece.name == "b")
        assert shares is not None and [folder.name for folder in shares[0].folders] == ["a", "b"]

    share()
    assert made == ["a", "b", "c", "d"]
    share()
    assert made == ["a", "b", "c", "d"]


def test_two_teachers_of_unequal_speed_keep_to_the_cap_together(desk: Desk) -> None:
    desk.put(CLASSES * 80)
    cap = 100 * price_of_one(desk)
    with FakeTeacher(latency_s=0.1) as slow:
        second = {"model": "slow", "base_url": slow.url, "price": PRICE, "image_px": 32, "in_flight": 4}
        desk.label(desk.run_file(teacher={"in_flight": 12}, second_teacher=second, max_cost_usd=cap))
        assert desk.teacher.ledger.usd + slow.ledger.usd <= cap * 120 / 100


def test_what_was_asked_ahead_is_in_the_price_of_a_label(desk: Desk) -> None:
    desk.put(CLASSES * 100)
    artifact = desk.label(desk.run_file(teacher={"in_flight": 64}, per_class=10))
    assert desk.billed > 64
    costs = artifact.measurements()["costs"]
    assert costs["usd"] == pytest.approx(desk.teacher.ledger.usd, rel=0.02)
    assert costs["usd_per_kept_label"] == pytest.approx(costs["usd"] / 30, rel=1e-3)


def test_how_far_ahead_a_teacher_is_asked_changes_no_byte(desk: Desk) -> None:
    desk.put(CLASSES * 40)
    ways: list[dict[str, Any]] = [{"in_flight": 1}, {"way": "batch", "batch_poll_s": 0.05}]
    live, batch = (desk.label(desk.run_file(teacher={"price": None, **way}, per_class=5), way.get("way", "live")) for way in ways)
    assert (live.id, live.facts) == (batch.id, batch.facts)
    assert {file.name for file in live.files} == {file.name for file in batch.files}
    assert desk.refused(live) == desk.refused(batch)


def test_a_teacher_that_fails_is_not_hidden_by_one_that_is_slow(desk: Desk) -> None:
    desk.put(CLASSES * 4)
    desk.teacher.change(latency_s=30.0)
    with FakeTeacher(key="another") as closed:
        second = {"model": "closed", "base_url": closed.url, "price": PRICE, "image_px": 32}
        started = time.monotonic()
        with pytest.raises(CredentialsError, match="teacher closed"):
            desk.label(desk.run_file(teacher={"timeout_s": 60}, second_teacher=second))
        assert time.monotonic() - started < 20


def test_a_mean_of_equal_confidences_is_not_below_them(desk: Desk) -> None:
    votes = desk.run_file(teacher={"votes": 3}, min_confidence=0.7)
    assert verdict(votes, [said(0.7, vote) for vote in range(3)]).problem is None


def test_the_cost_of_an_image_is_not_known_if_one_of_its_teachers_has_no_price(desk: Desk) -> None:
    second = {"model": "free", "base_url": desk.teacher.url}
    assert verdict(desk.run_file(second_teacher=second), [said(0.9)], [said(0.8)]).cost_usd is None
    assert verdict(desk.run_file(second_teacher={**second, "price": PRICE}), [said(0.9)], [said(0.8)]).cost_usd == 0.007


def test_equal_files_count_once_in_what_a_person_says_and_unknown_ones_are_told(desk: Desk) -> None:
    desk.put(CLASSES * 4)
    shutil.copy(desk.root / "images" / "000-fire.jpg", desk.root / "images" / "900-fire.jpg")
    sha256 = hashlib.sha256((desk.root / "images" / "000-fire.jpg").read_bytes()).hexdigest()
    items = [{"sha256": sha256, "label": "fire"}, {"sha256": "0" * 64, "label": "fire"}]
    (desk.root / "checked.json").write_text(json.dumps({"format": "pocketvlm-corrections/1", "items": items}))
    artifact = desk.label(desk.run_file(corrections="checked.json"))
    assert artifact.facts["corrections"]["images"] == 1
    assert "corrections: 1 of 2 are of images that are not among those looked at" in desk.log.getvalue()


def test_balance_does_not_hide_which_class_is_missing(desk: Desk) -> None:
    desk.put(["fire", "land"] * 6)
    with pytest.raises(DataError, match="class water: 0 usable images") as refused:
        desk.label(desk.run_file(balance=1.5))
    assert "class fire" not in str(refused.value)


def test_votes_without_chance_are_refused(desk: Desk) -> None:
    with pytest.raises(RunFileError, match="votes: at temperature 0 all answers are alike"):
        desk.run_file(teacher={"votes": 3, "temperature": 0.0})
