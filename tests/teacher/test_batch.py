"""A teacher in batches: the same answers as live ones, found again after any death, and billed once."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_teacher import FakeTeacher
from pictures import CLASSES, SECRET, TASK, picture, teacher_at

from pocketvlm.artifacts.folder import FolderStore
from pocketvlm.errors import CredentialsError, TeacherUnavailable, UserError
from pocketvlm.progress import Progress
from pocketvlm.teacher.answers import Outcome, TeacherImage
from pocketvlm.teacher.batch import BatchClient
from pocketvlm.teacher.budget import Budget
from pocketvlm.teacher.journal import Journal
from pocketvlm.teacher.live import LiveClient
from pocketvlm.teacher.question import TeacherQuestion
from pocketvlm.teacher.shards import ShardBook


class Desk:
    """A folder with a store, in which teachers are asked."""

    def __init__(self, fake: FakeTeacher, folder: Path) -> None:
        self.fake, self.folder = fake, folder
        self.store = FolderStore(folder / "store")
        self.log = io.StringIO()
        self.budget = Budget(None)

    def client(self, *, live: bool = False, store: FolderStore | None = None, **settings: Any) -> BatchClient | LiveClient:
        way = {"way": "live"} if live else {"way": "batch", "batch_poll_s": 0.02}
        teacher = teacher_at(self.fake, **{**way, **settings})
        question = TeacherQuestion(teacher, TASK, self.folder)
        store = store or self.store
        journal, common = Journal(store, question.key, self.folder), {"key": SECRET, "budget": self.budget}
        progress = Progress("labeller", self.log)
        if live:
            return LiveClient(teacher, question, journal, progress=progress, **common)
        return BatchClient(teacher, question, journal, store=store, scratch=self.folder, progress=progress, claim_s=1.0, **common)

    def ask(self, images: list[TeacherImage], **settings: Any) -> list[list[Outcome]]:
        with self.client(**settings) as client:
            return [list(reply.outcomes) for reply in client.ask(images).wait()]

    def bills(self) -> Counter[int]:
        """How many answers were billed how often."""
        return Counter(self.fake.ledger.asked.values())

    def batches(self) -> list[dict[str, Any]]:
        return list(self.fake.batches.batches.values())


@pytest.fixture
def desk(fake_teacher: FakeTeacher, tmp_path: Path) -> Iterator[Desk]:
    fake_teacher.change(batch_step_s=0.005)
    yield Desk(fake_teacher, tmp_path)


def pictures(count: int) -> list[TeacherImage]:
    return [picture(number) for number in range(count)]


def unbatched(outcome: Outcome) -> Outcome:
    return outcome.model_copy(update={"usage": outcome.usage.model_copy(update={"batched": False})})


def test_batches_give_the_outcomes_of_live_calls(desk: Desk, tmp_path: Path) -> None:
    odd = {3: "refusal", 4: "content_filter", 5: "length", 6: "wrong_schema", 7: "filtered_prompt"}
    desk.fake.faults.images = {picture(number).sha256: fault for number, fault in odd.items()}
    desk.fake.faults.rates = {"invalid_json": 0.3}
    batched = desk.ask(pictures(20), votes=2, seed=5, batch_requests=16)
    live = desk.ask(pictures(20), votes=2, seed=5, live=True, store=FolderStore(tmp_path / "other"))
    assert all(outcome.usage.batched for outcomes in batched for outcome in outcomes if outcome.calls)
    assert [[unbatched(one) for one in some] for some in batched] == live
    assert {one.kind for some in live for one in some} >= {"answer", "refused", "filtered", "cut_off", "invalid"}
    assert any(one.kind == "answer" and one.calls == 2 for some in batched for one in some), "a repair was needed and worked"
    labels = [some[0].answer["label"] for some in batched if some[0].answer]
    assert set(labels) <= {*CLASSES, "none"}


def test_what_the_journal_knows_is_not_asked_again(desk: Desk) -> None:
    first = desk.ask(pictures(6))
    requests = dict(desk.fake.ledger.requests)
    assert desk.ask(pictures(6)) == first
    assert desk.fake.ledger.requests == requests
    desk.ask(pictures(8))
    assert desk.bills() == {1: 8}


def test_shards_keep_to_bytes_and_count(desk: Desk) -> None:
    kept: list[bytes] = []
    upload = desk.fake.batches._keep

    def keep(name: str, content: bytes, purpose: str) -> Any:
        if purpose == "batch":
            kept.append(content)
        return upload(name, content, purpose)

    desk.fake.batches._keep = keep
    desk.ask([picture(number, 300) for number in range(24)], batch_bytes=1_000_000)
    assert len(kept) >= 2 and max(map(len, kept)) <= 1_000_000
    assert min(len(content) for content in kept[:-1]) > 800_000, "no smaller than need be"
    kept.clear()
    desk.ask(pictures(11), batch_requests=4)
    assert [content.count(b"\n") for content in kept] == [4, 4, 3]
    assert desk.bills() == {1: 35}


def test_the_unanswered_half_of_an_expired_batch_is_asked_again(desk: Desk) -> None:
    desk.fake.faults.batches.extend(["expired", "expired"])
    outcomes = desk.ask(pictures(12))
    assert all(some[0].kind == "answer" for some in outcomes)
    assert [batch["request_counts"]["total"] for batch in desk.batches()] == [12, 6, 3]
    assert desk.bills() == {1: 12}


def test_lines_that_failed_are_asked_again_and_not_for_ever(desk: Desk) -> None:
    desk.fake.faults.rates = {"line_error": 0.4}
    assert all(some[0].kind == "answer" for some in desk.ask(pictures(12)))
    assert desk.bills() == {1: 12}
    desk.fake.faults.rates = {"line_error": 1.0}
    with pytest.raises(TeacherUnavailable, match="1 questions had no answer in 4 batches"):
        desk.ask(pictures(13))
    desk.fake.faults.rates = {}
    desk.ask(pictures(13))
    assert desk.bills() == {1: 13}


def test_uploaded_files_and_answers_are_deleted_from_the_server(desk: Desk) -> None:
    desk.fake.faults.batches.append("expired")
    desk.ask(pictures(4))
    assert desk.fake.batches.files == {}
    assert not list(desk.folder.glob("*.jsonl"))


def test_it_waits_for_other_batches_while_too_many_tokens_are_enqueued(desk: Desk) -> None:
    desk.ask(pictures(1))
    one = desk.fake.ledger.input_tokens
    desk.fake.change(enqueued_tokens=5 * one, batch_step_s=0.1)
    desk.ask(pictures(12), batch_requests=4)
    assert desk.bills() == {1: 12}
    assert any(batch["status"] == "failed" for batch in desk.batches()), "the limit was met"


def test_a_batch_that_is_larger_than_the_limit_of_tokens_is_halved(desk: Desk) -> None:
    desk.ask(pictures(1))
    one = desk.fake.ledger.input_tokens
    desk.fake.change(enqueued_tokens=4 * one)
    desk.ask(pictures(12), batch_requests=12)
    assert desk.bills() == {1: 12}
    desk.fake.change(enqueued_tokens=one // 2)
    with pytest.raises(UserError, match="no room for a batch of one question: Enqueued token limit"):
        desk.ask(pictures(14))


def test_a_batch_that_the_server_refuses_is_a_matter_for_a_person(desk: Desk) -> None:
    desk.fake.faults.batches.append("invalid_file")
    with pytest.raises(UserError, match=r"refused batch batch_\w+ of 4 questions: This line is not parseable"):
        desk.ask(pictures(4))
    desk.ask(pictures(4))
    assert desk.bills() == {1: 4}


def test_a_batch_that_somebody_cancelled_is_not_asked_again_by_itself(desk: Desk) -> None:
    desk.fake.faults.batches.append("stuck")
    seen = threading.Event()

    def cancel(when: str, method: str, path: str) -> None:
        for batch in desk.batches():
            if batch["status"] == "in_progress" and not seen.is_set():
                seen.set()
                batch["status"] = "cancelling"
                desk.fake.batches._free.set()

    desk.fake.on_request = cancel
    with pytest.raises(UserError, match="somebody has cancelled"):
        desk.ask(pictures(4))
    desk.ask(pictures(4))
    assert desk.bills() == {1: 4}


def test_a_server_without_json_schema_is_asked_in_a_plainer_way(desk: Desk) -> None:
    desk.fake.change(refuses=["json_schema"])
    assert all(some[0].kind == "answer" for some in desk.ask(pictures(6)))
    assert desk.bills() == {1: 6}


def test_a_wrong_key_names_the_variable(desk: Desk) -> None:
    desk.fake.change(key="another")
    with pytest.raises(CredentialsError, match="OPENAI_API_KEY"):
        desk.ask(pictures(2))


@pytest.mark.parametrize("fault", ["unavailable", "cut_before", "cut_after"])
def test_a_broken_request_is_tried_again_and_nothing_is_created_twice(desk: Desk, fault: str) -> None:
    lost = ("GET /v1/files", "POST /v1/files", "GET /v1/batches", "POST /v1/batches", "GET /v1/batches/{id}",
            "GET /v1/files/{id}/content")  # fmt: skip
    desk.fake.faults.requests = {name: [fault] for name in lost}
    desk.ask(pictures(4))
    assert desk.fake.faults.requests == {name: [] for name in lost}
    assert len(desk.batches()) == 1 and desk.bills() == {1: 4}


def test_a_cap_is_passed_by_no_more_than_what_is_in_flight(desk: Desk) -> None:
    desk.ask(pictures(1))
    one_usd = desk.fake.ledger.usd
    desk.budget = Budget(50 * one_usd)
    outcomes = desk.ask(pictures(90))
    answered = sum(bool(some) for some in outcomes)
    assert 45 <= answered <= 56
    assert outcomes[:answered] == [some for some in outcomes if some], "the first ones"
    assert desk.fake.ledger.usd == pytest.approx(desk.budget.spent_usd)
    desk.budget = Budget(50 * one_usd)
    again = desk.ask(pictures(90))
    assert sum(bool(some) for some in again) <= answered
    assert desk.bills() == {1: desk.fake.ledger.billed}, "and a rerun pays nothing new"


def test_two_at_once_bill_once(desk: Desk) -> None:
    clients = [desk.client(batch_requests=5) for _ in range(3)]
    shares = [pictures(14), pictures(14), pictures(17)[3:]]
    try:
        replies = [ticket.wait() for ticket in [client.ask(share) for client, share in zip(clients, shares, strict=True)]]
    finally:
        for client in clients:
            client.close()
    assert [len(reply) for reply in replies] == [14, 14, 14]
    assert all(one.outcomes for reply in replies for one in reply)
    assert desk.bills() == {1: 17}


class Overtaken(FolderStore):
    """The third look at the list of open batches, which follows planning, comes when `others` have ended theirs."""

    def __init__(self, root: Path, others: Callable[[], object]) -> None:
        super().__init__(root)
        self.others, self.looks = others, 0

    def read_tagged(self, key: str) -> tuple[bytes, str] | None:
        if key.endswith("/open.json"):
            self.looks += 1
            if self.looks == 3:
                self.others()
        return super().read_tagged(key)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("journalled", [True, False], ids=["with its answers", "without"])
def test_a_batch_that_another_ends_while_we_plan_loses_no_question(desk: Desk, journalled: bool) -> None:
    desk.fake.change(batch_step_s=0.3)
    first = desk.client()
    ticket = first.ask(pictures(4))
    while not any(book.open() for book in books(desk)):
        time.sleep(0.01)

    def ended() -> None:
        if journalled:
            ticket.wait()
        else:
            first.close()
            for book in books(desk):
                for held in book.open():
                    book.end(held)

    second = desk.client(store=Overtaken(desk.folder / "store", ended))
    try:
        replies = second.ask(pictures(4)).wait()
    finally:
        first.close()
        second.close()
    assert all(reply.outcomes for reply in replies)
    assert not journalled or desk.bills() == {1: 4}


def books(desk: Desk) -> list[ShardBook]:
    return [ShardBook(desk.store, folder.name) for folder in (desk.folder / "store" / "answers").glob("*")]


class Mortal:
    """A process that labels, and can be killed."""

    def __init__(self, fake: FakeTeacher, folder: Path) -> None:
        self.fake, self.folder = fake, folder
        command = [sys.executable, str(Path(__file__).with_name("killed_batch.py")), fake.url, str(folder)]
        self._zygote = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def run(self, *, store_operation: int = 0, before: int = 0, after: int = 0) -> bool:
        """Whether it came to its end. It is killed before or after the server has carried out its n-th request, but for those by
        which it only looks whether something has happened."""
        pid = int(self._said(f"{store_operation}\n"))
        seen: Counter[str] = Counter()

        def kill(when: str, method: str, path: str) -> None:
            if method != "GET" or not path.startswith("/v1/batches"):
                seen[when] += 1
                if seen[when] == {"before": before, "after": after}[when]:
                    os.kill(pid, signal.SIGKILL)

        self.fake.on_request = kill
        os.kill(pid, signal.SIGCONT)
        status = int(self._said(""))
        self.fake.on_request = lambda when, method, path: None
        assert status in (0, signal.SIGKILL), "it failed by itself"
        return status == 0

    def _said(self, line: str) -> str:
        assert self._zygote.stdin is not None and self._zygote.stdout is not None
        self._zygote.stdin.write(line)
        self._zygote.stdin.flush()
        return self._zygote.stdout.readline()

    def end(self) -> None:
        self._zygote.communicate(timeout=20)

    def states(self) -> set[str]:
        files = (self.folder / "store").glob("answers/*/batches/*.json")
        return {json.loads(path.read_text())["status"] for path in files if path.name != "open.json"}


@pytest.mark.parametrize("kind", ["before", "after", "store_operation"])
def test_killed_in_each_of_its_states_it_bills_every_answer_once(fake_teacher: FakeTeacher, tmp_path: Path, kind: str) -> None:
    fake_teacher.change(batch_step_s=0.005)
    fake_teacher.faults.rates = {"invalid_json": 0.2, "line_error": 0.2}
    fake_teacher.faults.batches.append("expired")
    mortal, seen, kills = Mortal(fake_teacher, tmp_path), set(), 0
    try:
        while not mortal.run(**{kind: kills + 1}):
            kills += 1
            seen |= mortal.states()
    finally:
        mortal.end()
    assert kills >= 5
    assert len(seen & {"planned", "uploaded", "creating", "created", "ended"}) >= 4, "it died in different states"
    assert set(fake_teacher.ledger.asked.values()) == {1}
    made = Counter(batch["metadata"]["pocketvlm_shard"] for batch in fake_teacher.batches.batches.values())
    assert set(made.values()) == {1}, "no batch was created twice"
    outcomes = json.loads((tmp_path / "outcomes.json").read_text())
    assert len(outcomes) == 8 and all(outcomes), "nothing is lost"


def test_closing_it_ends_at_once_and_leaves_the_batch_to_the_next(desk: Desk) -> None:
    desk.fake.faults.batches.append("stuck")
    created = threading.Event()
    desk.fake.on_request = lambda when, method, path: created.set() if when == "before" and "/batches/" in path else None
    with desk.client(batch_poll_s=0.05) as client:
        ticket = client.ask(pictures(4))
        assert created.wait(30)
    with pytest.raises(RuntimeError):
        ticket.wait()
    desk.fake.server._loop.call_soon_threadsafe(desk.fake.batches.free)
    desk.ask(pictures(4))
    assert len(desk.batches()) == 1 and desk.bills() == {1: 4}




def test_a_batch_of_another_store_is_not_taken_for_ones_own(desk: Desk, tmp_path: Path) -> None:
    """It has collected the same questions' answers and deleted them from the server that both use."""
    first = desk.ask(pictures(5))
    assert desk.ask(pictures(5), store=FolderStore(tmp_path / "other")) == first
    assert len(desk.batches()) == 2
