"""The fake teacher is honest: it enforces its quota, bills what it does, and says the same to the same."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Iterator
from typing import Any

import httpx2
import openai
import pytest
from fake_ledger import go_duration
from fake_teacher import KEY, FakeTeacher
from pictures import CLASSES, LABELS, jpeg

SCHEMA = {"type": "object", "required": ["label"], "additionalProperties": False,
          "properties": {"label": {"type": "string", "enum": list(LABELS)}}}  # fmt: skip


@pytest.fixture
def client(fake_teacher: FakeTeacher) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(api_key=KEY, base_url=fake_teacher.url, max_retries=0, timeout=20) as client:
        yield client


def body(number: int = 0) -> dict[str, Any]:
    url = f"data:image/png;base64,{base64.b64encode(jpeg(number)).decode()}"
    content = [{"type": "text", "text": "What is it?"}, {"type": "image_url", "image_url": {"url": url}}]
    response_format = {"type": "json_schema", "json_schema": {"name": "answer", "strict": True, "schema": SCHEMA}}
    return {"model": "gpt-4o", "seed": 1, "messages": [{"role": "user", "content": content}], "response_format": response_format}


def ask(client: openai.OpenAI, number: int = 0) -> Any:
    return client.chat.completions.with_raw_response.create(**body(number))


def test_equal_requests_get_equal_bytes_and_the_label_of_the_colour(client: openai.OpenAI, fake_teacher: FakeTeacher) -> None:
    object.__setattr__(fake_teacher.speaker, "waver", 0.0)
    first, second = ask(client), ask(client)
    assert first.content == second.content and first.headers["x-request-id"] == second.headers["x-request-id"]
    labels = [json.loads(ask(client, number).parse().choices[0].message.content)["label"] for number in range(3)]
    assert labels == list(CLASSES)
    assert fake_teacher.ledger.billed == 5
    assert len(fake_teacher.ledger.images) == 3


def test_it_never_lets_more_in_than_its_quota_of_a_short_time(client: openai.OpenAI, fake_teacher: FakeTeacher) -> None:
    fake_teacher.change(requests_per_minute=600, burst_s=0.5)
    started = time.monotonic()
    let_in = 0
    while time.monotonic() - started < 1:
        try:
            answer = ask(client)
            let_in += 1
            assert answer.headers["x-ratelimit-limit-requests"] == "600"
        except openai.RateLimitError as error:
            assert error.code == "rate_limit_exceeded"
            wait_s = int(error.response.headers["retry-after-ms"]) / 1000
            assert 0 < wait_s <= 0.11
            time.sleep(wait_s)
    assert let_in <= 5 + 10 * (time.monotonic() - started) + 1
    assert fake_teacher.ledger.billed == let_in


def test_what_was_cut_after_it_was_billed_is_billed(client: openai.OpenAI, fake_teacher: FakeTeacher) -> None:
    fake_teacher.faults.next.extend(["cut_before", "cut_after"])
    for _ in range(2):
        with pytest.raises(openai.APIConnectionError):
            ask(client)
    assert fake_teacher.ledger.billed == 1
    assert fake_teacher.ledger.statuses == {0: 2}


@pytest.mark.parametrize(
    ("fault", "status"),
    [("rate_limit", 429), ("rate_limit_silent", 429), ("no_quota", 429), ("server_error", 500), ("bad_gateway", 502),
     ("unavailable", 503), ("filtered_prompt", 400)],
)  # fmt: skip
def test_what_it_refuses_is_not_billed(client: openai.OpenAI, fake_teacher: FakeTeacher, fault: str, status: int) -> None:
    fake_teacher.faults.next.append(fault)
    with pytest.raises(openai.APIStatusError) as caught:
        ask(client)
    assert caught.value.status_code == status
    assert ("retry-after" in caught.value.response.headers) == (fault == "rate_limit")
    assert fake_teacher.ledger.billed == 0


def test_a_wrong_key_or_no_image_gets_the_servers_own_errors(client: openai.OpenAI, fake_teacher: FakeTeacher) -> None:
    with pytest.raises(openai.AuthenticationError):
        client.with_options(api_key="wrong").chat.completions.create(**body())
    broken = body()
    broken["messages"][0]["content"][1]["image_url"]["url"] = "data:image/png;base64,AAAA"
    with pytest.raises(openai.BadRequestError, match="unsupported image"):
        client.chat.completions.create(**broken)


def test_faults_and_the_ledger_are_open_to_other_processes(client: openai.OpenAI, fake_teacher: FakeTeacher) -> None:
    home = fake_teacher.server.url
    httpx2.post(f"{home}/_faults", json={"next": ["refusal"], "latency_s": 0.01}).raise_for_status()
    assert ask(client).parse().choices[0].message.refusal
    ledger = httpx2.get(f"{home}/_ledger").json()
    assert ledger["billed"] == 1 and ledger["most_at_once"] == 1 and ledger["usd"] > 0


def test_a_batch_is_billed_once_and_answers_out_of_order(client: openai.OpenAI, fake_teacher: FakeTeacher) -> None:
    lines = [{"custom_id": f"{n}", "method": "POST", "url": "/v1/chat/completions", "body": body(n)} for n in range(8)]
    file = client.files.create(file=("in.jsonl", "\n".join(map(json.dumps, lines)).encode()), purpose="batch")
    batch = client.batches.create(input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h")
    states = [batch.status]
    while states[-1] != "completed":
        batch = client.batches.retrieve(batch.id)
        states += [batch.status] if batch.status != states[-1] else []
    assert states[0] == "validating" and "in_progress" in states
    for _ in range(2):
        answers = [json.loads(line) for line in client.files.content(batch.output_file_id or "").text.splitlines()]
    ids = [answer["custom_id"] for answer in answers]
    assert ids != sorted(ids) and sorted(ids) == [f"{n}" for n in range(8)]
    assert set(fake_teacher.ledger.custom_ids.values()) == {1}
    live = client.chat.completions.create(**body(int(ids[0])))
    assert answers[0]["response"]["body"]["choices"][0]["message"]["content"] == live.choices[0].message.content


@pytest.mark.parametrize(("seconds", "text"), [(0.12, "120ms"), (1.2, "1.2s"), (360, "6m0s"), (3723, "1h2m3s"), (0, "0ms")])
def test_times_are_written_as_go_does(seconds: float, text: str) -> None:
    assert go_duration(seconds) == text
