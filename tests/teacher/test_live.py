from __future__ import annotations

import io
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from asking import PRICE, TASK, image_of, images, kinds, live, outcomes, picture, teacher_of
from fake_teacher import KEY, FakeTeacher
from pydantic import SecretStr

from pocketvlm.artifacts.folder import FolderStore
from pocketvlm.errors import CredentialsError, TeacherUnavailable, UserError
from pocketvlm.progress import Progress
from pocketvlm.run_file import Price, Task, Teacher
from pocketvlm.teacher.budget import Budget, cost_usd
from pocketvlm.teacher.journal import Journal
from pocketvlm.teacher.live import LiveClient
from pocketvlm.teacher.open import open_teacher
from pocketvlm.teacher.question import TeacherQuestion


def billed_as_counted(fake: FakeTeacher, replies: Any) -> bool:
    """What the server bills is what the outcomes say, to the token."""
    found = {(one.image, one.vote): one for one in outcomes(replies)}.values()
    counted = (sum(one.calls for one in found), sum(one.usage.input_tokens for one in found))
    return counted == (fake.ledger.billed, fake.ledger.input_tokens)


def test_images_get_the_labels_that_the_teacher_sees(fake_teacher: FakeTeacher, tmp_path: Path) -> None:
    fake_teacher.speaker = type(fake_teacher.speaker)(waver=0.0)
    with live(fake_teacher, tmp_path) as client:
        asked = images(9)
        replies = client.ask(asked).wait()
    assert [reply.image for reply in replies] == asked
    answers = [one.answer for one in outcomes(replies)]
    assert [answer["label"] for answer in answers if answer] == ["fire", "land", "water"] * 3
    assert {one.model for one in outcomes(replies)} == {"seer-2026-01-01"}
    assert all(one.request_id.startswith("req_") for one in outcomes(replies))
    assert billed_as_counted(fake_teacher, replies)


def test_a_rerun_asks_nothing_and_says_the_same(fake_teacher: FakeTeacher, tmp_path: Path) -> None:
    first_budget, again_budget = Budget(None), Budget(None)
    with live(fake_teacher, tmp_path, votes=2, temperature=1.0, seed=5, budget=first_budget) as client:
        first = client.ask(images(5)).wait()
    with live(fake_teacher, tmp_path, votes=2, temperature=1.0, seed=5, budget=again_budget, image_px=99) as client:
        again = client.ask(images(5)).wait()
        assert (client.stats.cached, client.stats.calls) == (10, 0)
        assert client.stats.spent_usd == pytest.approx(fake_teacher.ledger.usd)
    assert outcomes(first) == outcomes(again)
    assert fake_teacher.ledger.billed == 10
    assert first_budget.spent_usd == again_budget.spent_usd == pytest.approx(fake_teacher.ledger.usd)


def test_votes_differ_in_their_seed(fake_teacher: FakeTeacher, tmp_path: Path) -> None:
    with live(fake_teacher, tmp_path, votes=3, seed=40, temperature=1.0) as client:
        replies = client.ask(images(1)).wait()
    assert [one.vote for one in outcomes(replies)] == [0, 1, 2]
    assert sorted(seed for _, seed, _ in fake_teacher.ledger.asked) == [40, 41, 42]


def test_another_prompt_is_another_question(fake_teacher: FakeTeacher, tmp_path: Path) -> None:
    (tmp_path / "own.jinja").write_text("Look well. {{ shape }}")
    for settings in ({}, {"system_prompt": "own.jinja"}, {"system_prompt": "own.jinja"}):
        with live(fake_teacher, tmp_path, **settings) as client:
            client.ask(images(2)).wait()
    assert fake_teacher.ledger.billed == 4


def test_equal_images_are_asked_and_paid_once(fake_teacher: FakeTeacher, tmp_path: Path) -> None:
    fake_teacher.settings.latency_s = 0.1
    budget, data = Budget(None), picture("fire")
    with live(fake_teacher, tmp_path, budget=budget) as client:
        tickets = [client.ask([image_of(data, 3 * number + more) for more in range(3)]) for number in range(3)]
        replies = [reply for ticket in tickets for reply in ticket.wait()]
    assert len(outcomes(replies)) == 9
    assert fake_teacher.ledger.billed == 1
    assert budget.spent_usd == pytest.approx(fake_teacher.ledger.usd)


def test_an_extract_task_is_asked_for_its_fields(fake_teacher: FakeTeacher, tmp_path: Path) -> None:
    fields = {"panels": {"type": "integer", "description": "how many"}, "roof": {"type": "string", "description": "its state"}}
    task = Task.model_validate({"kind": "extract", "question": "?", "fields": fields})
    with live(fake_teacher, tmp_path, task=task) as client:
        (outcome,) = outcomes(client.ask(images(1)).wait())
    assert outcome.answer is not None
    assert list(outcome.answer) == ["reason", "panels", "roof", "confidence"]


@pytest.mark.parametrize(
    ("fault", "kind", "billed"),
    [("refusal", "refused", 1), ("content_filter", "filtered", 1), ("filtered_prompt", "filtered", 0), ("length", "cut_off", 1),
     ("invalid_json", "invalid", 2), ("wrong_schema", "invalid", 2)],
)  # fmt: skip
def test_what_is_no_answer_is_journalled_and_never_asked_again(
    fake_teacher: FakeTeacher, tmp_path: Path, fault: str, kind: str, billed: int
) -> None:
    asked = images(3)
    fake_teacher.faults.images = {asked[1].sha256: fault}
    budget = Budget(None)
    with live(fake_teacher, tmp_path, budget=budget) as client:
        replies = client.ask(asked).wait()
    assert kinds(replies) == ["answer", kind, "answer"]
    assert outcomes(replies)[1].calls == billed
    assert outcomes(replies)[1].detail
    assert fake_teacher.ledger.images[asked[1].sha256] == billed
    assert billed_as_counted(fake_teacher, replies)
    assert budget.spent_usd == pytest.approx(fake_teacher.ledger.usd)
    with live(fake_teacher, tmp_path) as client:
        assert kinds(client.ask(asked).wait()) == ["answer", kind, "answer"]
        assert client.stats.calls == 0


def test_a_broken_answer_is_repaired_once(fake_teacher: FakeTeacher, tmp_path: Path) -> None:
    fake_teacher.faults.next.extend(["invalid_json", "ok"])
    with live(fake_teacher, tmp_path) as client:
        replies = client.ask(images(1)).wait()
        assert client.stats.repairs == 1
    assert kinds(replies) == ["answer"]
    assert outcomes(replies)[0].calls == 2
    assert billed_as_counted(fake_teacher, replies)


def test_an_image_that_the_server_cannot_read_does_not_stop_the_others(fake_teacher: FakeTeacher, tmp_path: Path) -> None:
    with live(fake_teacher, tmp_path) as client:
        replies = client.ask([*images(2), image_of(b"\xff\xd8 no picture", 2)]).wait()
    assert kinds(replies) == ["answer", "answer", "invalid"]
    assert "unsupported image" in outcomes(replies)[2].detail


def test_a_model_that_can_read_no_image_ends_the_run(fake_teacher: FakeTeacher, tmp_path: Path) -> None:
    asked = [image_of(b"\xff\xd8 no picture %d" % number, number) for number in range(60)]
    with live(fake_teacher, tmp_path) as client, pytest.raises(UserError, match=r"can read none.*teacher\.model"):
        client.ask(asked).wait()


@pytest.mark.parametrize("fault", ["rate_limit", "rate_limit_silent", "server_error", "bad_gateway", "unavailable", "cut_before"])
def test_what_may_pass_is_tried_again_and_billed_once(fake_teacher: FakeTeacher, tmp_path: Path, fault: str) -> None:
    fake_teacher.faults.next.extend([fault, "ok", fault])
    with live(fake_teacher, tmp_path) as client:
        replies = client.ask(images(4)).wait()
        assert (client.stats.calls, client.stats.retries) == (6, 2)
    assert kinds(replies) == ["answer"] * 4
    assert fake_teacher.ledger.billed == 4


def test_an_answer_that_is_cut_off_by_the_network_is_asked_again(fake_teacher: FakeTeacher, tmp_path: Path) -> None:
    fake_teacher.faults.next.append("cut_after")
    with live(fake_teacher, tmp_path) as client:
        assert kinds(client.ask(images(1)).wait()) == ["answer"]
    assert fake_teacher.ledger.billed == 2  # it was in flight


def test_a_call_that_takes_too_long_is_given_up_and_tried_again(fake_teacher: FakeTeacher, tmp_path: Path) -> None:
    fake_teacher.change(slow_s=30, next=["slow"])
    began = time.monotonic()
    with live(fake_teacher, tmp_path, timeout_s=0.5) as client:
        assert kinds(client.ask(images(2)).wait()) == ["answer"] * 2
        assert client.stats.retries == 1
    assert time.monotonic() - began < 15


def test_at_one_429_in_five_no_call_is_wasted(fake_teacher: FakeTeacher, tmp_path: Path) -> None:
    fake_teacher.change(rates={"rate_limit": 0.1, "rate_limit_silent": 0.1}, retry_after_s=0.05, latency_s=0.02)
    with live(fake_teacher, tmp_path) as client:
        replies = client.ask(images(150)).wait()
        calls = client.stats.calls
    forced = sum(fake_teacher.faults.forced.values())
    assert forced >= 20
    assert calls <= (150 + forced) * 1.01
    assert (len(outcomes(replies)), fake_teacher.ledger.billed) == (150, 150)


def test_under_all_faults_at_once_every_image_gets_its_outcome_and_the_bill_is_right(
    fake_teacher: FakeTeacher, tmp_path: Path
) -> None:
    passing = dict.fromkeys(("rate_limit", "rate_limit_silent", "server_error", "bad_gateway", "unavailable", "cut_before"), 0.04)
    lasting = dict.fromkeys(("invalid_json", "refusal", "content_filter", "filtered_prompt", "length", "wrong_schema"), 0.04)
    fake_teacher.change(rates=passing | lasting, retry_after_s=0.05)
    budget = Budget(None)
    with live(fake_teacher, tmp_path, budget=budget) as client:
        replies = client.ask(images(120)).wait()
    assert set(kinds(replies)) == {"answer", "refused", "filtered", "cut_off", "invalid"}
    assert billed_as_counted(fake_teacher, replies)
    assert max(Counter(one.image for one in outcomes(replies)).values()) == 1
    assert budget.spent_usd == pytest.approx(fake_teacher.ledger.usd)


def test_a_quota_is_used_and_never_exceeded(fake_teacher: FakeTeacher, tmp_path: Path) -> None:
    """Enforced within any two seconds, as real servers enforce minutes in pieces."""
    fake_teacher.change(requests_per_minute=1200, burst_s=2, latency_s=0.2)
    least_s, used = 86 / 20, False
    with live(fake_teacher, tmp_path) as client:
        client.ask(images(4)).wait()  # the openai package is loaded
        for known in (4, 90, 176):  # again, where calls came late since the machine was busy with something else
            began = time.monotonic()
            client.ask(images(known + 86)).wait()
            took_s = time.monotonic() - began
            assert fake_teacher.ledger.statuses == {200: known + 86}
            assert took_s >= least_s
            if used := took_s <= least_s / 0.95 + 0.5:  # the last call takes 0.2 s
                break
    assert used


def test_calls_at_once_keep_to_in_flight(fake_teacher: FakeTeacher, tmp_path: Path) -> None:
    fake_teacher.settings.latency_s = 0.05
    with live(fake_teacher, tmp_path, in_flight=3) as client:
        client.ask(images(30)).wait()
    assert fake_teacher.ledger.most_at_once == 3


def test_many_images_go_at_once(fake_teacher: FakeTeacher, tmp_path: Path) -> None:
    """A part of the known job, 1,000 images at 2 s in 60 s."""
    fake_teacher.settings.latency_s = 1.0
    with live(fake_teacher, tmp_path) as client:
        client.ask(images(1)).wait()
        began = time.monotonic()
        client.ask(images(150)).wait()
        assert time.monotonic() - began < 60  # one by one it would be 150 s; alone on a machine it is 5 s
    assert fake_teacher.ledger.most_at_once > 32


@pytest.mark.parametrize(
    ("refuses", "settings", "asked"),
    [(("json_schema",), {}, 3), (("json_schema", "json_object"), {}, 3), (("max_tokens",), {}, 3),
     (("json_schema", "max_tokens"), {"structure": "auto"}, 3)],
)  # fmt: skip
def test_a_server_is_spoken_to_as_it_wants(
    fake_teacher: FakeTeacher, tmp_path: Path, refuses: tuple[str, ...], settings: dict[str, Any], asked: int
) -> None:
    fake_teacher.settings.refuses = refuses
    with live(fake_teacher, tmp_path, **settings) as client:
        assert kinds(client.ask(images(asked)).wait()) == ["answer"] * asked
        before = client.stats.calls
        client.ask(images(2 * asked)).wait()
        assert client.stats.calls == before + asked  # it is remembered
    assert fake_teacher.ledger.billed == 2 * asked


def test_a_server_that_ignores_the_schema_is_understood(fake_teacher: FakeTeacher, tmp_path: Path) -> None:
    fake_teacher.settings.ignores_schema = True
    with live(fake_teacher, tmp_path) as client:
        assert kinds(client.ask(images(3)).wait()) == ["answer"] * 3
    assert fake_teacher.ledger.billed == 3


@pytest.mark.parametrize(
    ("change", "settings", "error", "says"),
    [
        ({"key": "another"}, {}, CredentialsError, "Incorrect API key provided"),
        ({"models": ["other"]}, {}, UserError, "The model `seer` does not exist.*teacher.model"),
        ({"refuses": ["seed"]}, {"seed": 1}, UserError, "'seed' is not supported"),
        ({"refuses": ["json_schema"]}, {"structure": "json_schema"}, UserError, "response_format"),
        ({"images": {image.sha256: "no_quota" for image in images(30)}}, {}, UserError, "no credit left"),
    ],
)
def test_what_a_person_must_change_ends_the_run_at_once(
    fake_teacher: FakeTeacher, tmp_path: Path, change: dict[str, Any], settings: dict[str, Any], error: type[UserError], says: str
) -> None:
    fake_teacher.change(**change)
    with live(fake_teacher, tmp_path, **settings) as client:
        for _ in range(2):
            with pytest.raises(error, match=says) as raised:
                client.ask(images(30)).wait()
            assert "teacher seer at http://127.0.0.1" in str(raised.value)
    assert sum(fake_teacher.ledger.statuses.values()) <= 8
    assert KEY not in str(raised.value)


def test_when_nothing_but_errors_comes_the_run_ends(fake_teacher: FakeTeacher, tmp_path: Path) -> None:
    fake_teacher.faults.rates = {"server_error": 1.0}
    nothing_but_errors = pytest.raises(TeacherUnavailable, match=r"nothing but errors.*500")
    with live(fake_teacher, tmp_path, deadline_s=8) as client, nothing_but_errors:
        client.ask(images(100)).wait()


def test_one_answer_that_never_comes_ends_the_run_at_its_deadline(fake_teacher: FakeTeacher, tmp_path: Path) -> None:
    asked = images(6)
    fake_teacher.faults.images = {asked[2].sha256: "unavailable"}
    never_came = pytest.raises(TeacherUnavailable, match=f"image {asked[2].sha256[:16]} in 1.5 s and .* 503")
    with live(fake_teacher, tmp_path, deadline_s=1.5) as client, never_came:
        client.ask(asked).wait()
    fake_teacher.faults.images = {}
    with live(fake_teacher, tmp_path) as client:
        assert kinds(client.ask(asked).wait()) == ["answer"] * 6
    assert fake_teacher.ledger.billed == 6


def test_nobody_at_the_address_is_said_with_the_address(fake_teacher: FakeTeacher, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    nobody = pytest.raises(TeacherUnavailable, match=r"teacher seer at http://127\.0\.0\.1.*onnect")
    with live(fake_teacher, tmp_path, base_url=url, deadline_s=0.6) as client, nobody:
        client.ask(images(40)).wait()


def test_when_one_call_fails_for_good_those_that_are_paid_are_journalled_first(fake_teacher: FakeTeacher, tmp_path: Path) -> None:
    asked = images(6)
    fake_teacher.change(latency_s=0.5, images={asked[5].sha256: "no_quota"})
    with live(fake_teacher, tmp_path) as client, pytest.raises(UserError, match="no credit"):
        client.ask(asked).wait()
    assert fake_teacher.ledger.billed == 5
    fake_teacher.change(images={})
    with live(fake_teacher, tmp_path) as client:
        client.ask(asked).wait()
        assert (client.stats.cached, client.stats.calls) == (5, 1)


def test_the_cap_is_passed_by_the_calls_in_flight_at_most(fake_teacher: FakeTeacher, tmp_path: Path) -> None:
    with live(fake_teacher, tmp_path / "one") as client:
        one_usd = cost_usd(outcomes(client.ask(images(1)).wait())[0].usage, Price.model_validate(PRICE))
    fake_teacher.settings.latency_s = 0.02
    budget = Budget(10 * one_usd)
    with live(fake_teacher, tmp_path, budget=budget, in_flight=4) as client:
        replies = client.ask(images(60)).wait()
    admitted = [bool(reply.outcomes) for reply in replies]
    assert 9 <= sum(admitted) <= 10 + 2 + 4
    assert admitted == sorted(admitted, reverse=True)
    assert budget.spent_usd <= (10 + 2 + 4) * one_usd * 1.2


def test_answers_of_an_earlier_run_count_against_the_cap(fake_teacher: FakeTeacher, tmp_path: Path) -> None:
    with live(fake_teacher, tmp_path) as client:
        first = client.ask(images(20)).wait()
    price = Price.model_validate(PRICE)
    costs = [cost_usd(one.usage, price) for one in outcomes(first)]
    with live(fake_teacher, tmp_path, budget=Budget(sum(costs[:8]) - 1e-9)) as client:
        replies = client.ask(images(40)).wait()
        assert client.stats.calls == 0
    assert [bool(reply.outcomes) for reply in replies] == [True] * 8 + [False] * 32


def test_without_a_price_nothing_is_paid(fake_teacher: FakeTeacher, tmp_path: Path) -> None:
    budget = Budget(None)
    with live(fake_teacher, tmp_path, price=None, budget=budget) as client:
        client.ask(images(2)).wait()
    assert budget.spent_usd == 0


def test_openai_s_own_endpoint_needs_a_key_and_others_may_do_without(fake_teacher: FakeTeacher, tmp_path: Path) -> None:
    with pytest.raises(CredentialsError, match=r"OPENAI_API_KEY, or OPENAI_API_KEY_FILE"):
        open_teacher(
            Teacher(model="gpt"), TASK, tmp_path, where="run.labeller.teacher", store=FolderStore(tmp_path), scratch=tmp_path,
            key=None, budget=Budget(None), progress=Progress(),
        )  # fmt: skip
    fake_teacher.settings.key = None
    with live(fake_teacher, tmp_path, key=None) as client:
        assert kinds(client.ask(images(1)).wait()) == ["answer"]


@pytest.mark.parametrize("key", ["", "two words", "line\n", "schlüssel"])
def test_a_key_that_cannot_be_one_is_refused_before_any_call(fake_teacher: FakeTeacher, tmp_path: Path, key: str) -> None:
    with pytest.raises(CredentialsError, match="OPENAI_API_KEY"), live(fake_teacher, tmp_path, key=key):
        pass


@contextmanager
def recorded_headers() -> Iterator[tuple[str, list[str]]]:
    """A server that keeps what it is sent, and says 401."""
    heard: list[str] = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            with server.accept()[0] as connection:
                heard.append(connection.recv(65536).decode(errors="replace"))
                connection.sendall(b"HTTP/1.1 401 No\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")

        thread = threading.Thread(target=serve)
        thread.start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}/v1", heard
        thread.join(10)


def test_the_environment_s_own_openai_settings_change_nothing(
    fake_teacher: FakeTeacher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("API_KEY", "ORG_ID", "PROJECT_ID", "ADMIN_KEY", "BASE_URL"):
        monkeypatch.setenv(f"OPENAI_{name}", "http://stranger")
    monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", "x-stranger: stranger")
    with (
        recorded_headers() as (url, heard),
        live(fake_teacher, tmp_path, base_url=url, in_flight=1) as client,
        pytest.raises(CredentialsError),
    ):
        client.ask(images(1)).wait()
    assert f"Bearer {KEY}" in heard[0]
    assert "stranger" not in heard[0]


def test_a_server_that_repeats_the_key_does_not_bring_it_into_a_message(fake_teacher: FakeTeacher, tmp_path: Path) -> None:
    fake_teacher.settings.models = ("other",)
    with live(fake_teacher, tmp_path, model=f"x-{KEY}") as client, pytest.raises(UserError) as raised:
        client.ask(images(1)).wait()
    assert "The model `x-[key]` does not exist" in str(raised.value)


def test_an_error_of_who_asks_drops_what_is_in_flight_at_once(fake_teacher: FakeTeacher, tmp_path: Path) -> None:
    fake_teacher.settings.latency_s = 60
    with pytest.raises(ValueError, match="enough"), live(fake_teacher, tmp_path) as client:
        ticket = client.ask(images(50))
        while fake_teacher.ledger.at_once < 8:
            time.sleep(0.02)
        began = time.monotonic()
        raise ValueError("enough")
    assert time.monotonic() - began < 30  # an answer takes 60
    with pytest.raises(RuntimeError, match="closed"):
        ticket.wait()


INTERRUPTED = """
    import os, signal, sys, threading, time
    from pathlib import Path
    sys.path.insert(0, sys.argv[3])
    from asking import images, live
    from fake_teacher import FakeTeacher
    with FakeTeacher(latency_s=60) as fake, live(fake, Path(sys.argv[1])) as client:
        ticket = client.ask(images(50))
        def interrupt():
            while fake.ledger.at_once < 8:
                time.sleep(0.02)
            Path(sys.argv[2]).write_text(repr(time.time()))
            os.kill(os.getpid(), signal.SIGINT)
        threading.Thread(target=interrupt, daemon=True).start()
        ticket.wait()
"""


def test_an_interrupt_of_who_waits_ends_fast(tmp_path: Path) -> None:
    paths = [str(path) for path in (tmp_path / "run", tmp_path / "at", Path(__file__).parent)]
    program = [sys.executable, "-c", textwrap.dedent(INTERRUPTED), *paths]
    ended = subprocess.run(program, capture_output=True, text=True, timeout=120)
    assert "KeyboardInterrupt" in ended.stderr
    assert time.time() - float((tmp_path / "at").read_text()) < 30  # an answer takes 60


KILLED = """
    import sys
    from pathlib import Path
    from types import SimpleNamespace
    sys.path.insert(0, sys.argv[3])
    from asking import images, live
    with live(SimpleNamespace(url=sys.argv[2]), Path(sys.argv[1]), in_flight=4) as client:
        client.ask(images(60)).wait()
"""


def test_killed_and_run_again_only_the_calls_in_flight_are_paid_twice(fake_teacher: FakeTeacher, tmp_path: Path) -> None:
    fake_teacher.settings.latency_s = 0.05
    ledger = fake_teacher.ledger
    program = [sys.executable, "-c", textwrap.dedent(KILLED), str(tmp_path), fake_teacher.url, str(Path(__file__).parent)]
    for billed in (10, 35):
        with subprocess.Popen(program) as process:
            while ledger.billed < billed and process.poll() is None:
                time.sleep(0.002)
            process.kill()
        assert process.returncode == -9
    with live(fake_teacher, tmp_path) as client:
        replies = client.ask(images(60)).wait()
    assert kinds(replies) == ["answer"] * 60
    assert len(ledger.images) == 60
    assert ledger.billed <= 60 + 2 * 4


def test_a_server_that_sends_no_bill_is_warned_of_once(fake_teacher: FakeTeacher, tmp_path: Path) -> None:
    complete = fake_teacher.complete

    def without_bill(question: Any, fault: str | None) -> tuple[int, dict[str, Any]]:
        _, body = complete(question, fault)
        fake_teacher.ledger.bill(question.key, body["usage"])
        return 203, {name: value for name, value in body.items() if name != "usage"}  # not 200: the fake would look for a bill

    fake_teacher.complete = without_bill  # type: ignore[method-assign]
    stream = io.StringIO()
    with live(fake_teacher, tmp_path, progress=Progress(stream=stream)) as client:
        assert kinds(client.ask(images(3)).wait()) == ["answer"] * 3
    assert stream.getvalue().count("does not say how many tokens") == 1


def test_what_another_process_has_journalled_meanwhile_is_not_asked(fake_teacher: FakeTeacher, tmp_path: Path) -> None:
    with live(fake_teacher, tmp_path) as one, live(fake_teacher, tmp_path) as other:
        one.ask(images(1)).wait()
        other.ask(images(4)).wait()
        one.ask(images(4)).wait()
    assert fake_teacher.ledger.billed == 4


def test_the_question_lies_beside_its_answers(fake_teacher: FakeTeacher, tmp_path: Path) -> None:
    with live(fake_teacher, tmp_path) as client:
        client.ask(images(1)).wait()
    key = TeacherQuestion(teacher_of(fake_teacher.url), TASK, tmp_path).key
    kept = (tmp_path / "store" / "answers" / key / "question.json").read_text()
    assert "flames, embers" in kept
    assert KEY not in kept


def test_a_client_that_is_never_asked_leaves_nothing_open(fake_teacher: FakeTeacher, tmp_path: Path) -> None:
    teacher = teacher_of(fake_teacher.url)
    question = TeacherQuestion(teacher, TASK, tmp_path)
    journal = Journal(FolderStore(tmp_path), question.key, tmp_path)
    LiveClient(teacher, question, journal, key=SecretStr(KEY), budget=Budget(None), progress=Progress()).close()
    assert list(tmp_path.iterdir()) == []
