"""A labelling server with OpenAI's protocol, over real HTTP: chat completions and batches, quotas, bills, and its bad days.

    python tests/teacher/fake_teacher.py --host 127.0.0.1 --port 0 --latency 0.05 --requests-per-minute 600

prints its URL. `GET /_ledger` (`?brief=1`) says what was billed, `POST /_faults` takes what `Faults` and `Settings` have as
JSON, `POST /_reset` empties the ledger. What was uploaded and asked lives as long as the server. Needs Pillow and nothing else.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from fake_answers import NoImage, Question, Speaker, by_colour, by_hash, question_of, schema_of, usage_of
from fake_batches import Batches
from fake_faults import Faults
from fake_http import Cut, HttpServer, Request, Response
from fake_ledger import Ledger, Quota

KEY = "a-key-of-the-fake-teacher"
CREATED = 1_790_000_000
"""Every answer's time: equal requests get equal bytes."""


@dataclass
class Settings:
    """How the server is; may be changed while it runs."""

    key: str | None = KEY
    """None: open to all."""
    models: tuple[str, ...] = ()
    """Those that it has; none: any."""
    latency_s: float = 0.0
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    burst_s: float = 60.0
    """Quotas hold within any such time too; less than 60 is what real servers do."""
    says_quota: bool = True
    """Whether answers have `x-ratelimit-*`."""
    refuses: tuple[str, ...] = ()
    """400 for these: `json_schema`, `json_object`, or a parameter such as `seed`."""
    ignores_schema: bool = False
    """Takes any response_format and answers JSON within prose."""
    batch_step_s: float = 0.05
    """Time of each step of a batch: validating, four of in_progress, finalizing."""
    enqueued_tokens: int | None = None
    """Most prompt tokens of all batches that are not finished."""
    shuffled: bool = True
    """Batches answer out of order."""


class FakeTeacher:
    """The server; listens on loopback while it is a context manager."""

    def __init__(self, *, host: str = "127.0.0.1", port: int = 0, speaker: Speaker | None = None, faults: Faults | None = None,
                 **settings: Any) -> None:  # fmt: skip
        self.settings = Settings(**settings)
        self.faults = faults or Faults()
        self.speaker = speaker or Speaker()
        self.ledger = Ledger()
        self.batches = Batches(self)
        self.on_request: Callable[[str, str, str], None] = lambda when, method, path: None
        """Called `before` and `after` each request to /v1, from the server's thread."""
        self._requests = Quota(self.settings.requests_per_minute, self.settings.burst_s)
        self._tokens = Quota(self.settings.tokens_per_minute, self.settings.burst_s)
        self.server = HttpServer(self._answer, host, port)

    def __enter__(self) -> FakeTeacher:
        self.server.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self.server.__exit__(*error)

    @property
    def url(self) -> str:
        """What `teacher.base_url` takes."""
        return f"{self.server.url}/v1"

    def change(self, **new: Any) -> None:
        """Other settings or faults from now on."""
        own = {field.name for field in fields(Settings)}
        for name in own & new.keys():
            setattr(self.settings, name, tuple(new[name]) if isinstance(new[name], list) else new[name])
        if {"requests_per_minute", "tokens_per_minute", "burst_s"} & new.keys():
            self._requests.resize(self.settings.requests_per_minute, self.settings.burst_s)
            self._tokens.resize(self.settings.tokens_per_minute, self.settings.burst_s)
        self.faults.change({name: value for name, value in new.items() if name not in own})

    async def _answer(self, request: Request) -> Response:
        if request.path.startswith("/_"):
            return self._control(request)
        self.ledger.requests[f"{request.method} {_pattern(request.path)}"] += 1
        self.on_request("before", request.method, request.path)
        started = time.monotonic()
        response = await self._routed(request)
        response.headers.setdefault("x-request-id", f"req_{abs(hash(response.body)):032x}")
        took_ms = round((time.monotonic() - started) * 1000)
        response.headers |= {"openai-version": "2020-10-01", "openai-processing-ms": str(took_ms)}
        self.on_request("after", request.method, request.path)
        return response

    async def _routed(self, request: Request) -> Response:
        if self.settings.key is not None and request.headers.get("authorization") != f"Bearer {self.settings.key}":
            return refusal(401, "invalid_request_error", "invalid_api_key", "Incorrect API key provided.")
        if request.path == "/v1/chat/completions" and request.method == "POST":
            self.ledger.arrive()
            status = 0
            try:
                response = await self._complete(request)
                status = response.status
                return response
            finally:
                self.ledger.statuses[status] += 1
                self.ledger.leave()
        if request.path.startswith(("/v1/files", "/v1/batches")):
            return self._batched(request)
        return refusal(404, "invalid_request_error", None, f"Invalid URL ({request.method} {request.path})")

    def _batched(self, request: Request) -> Response:
        waiting = self.faults.requests.get(f"{request.method} {_pattern(request.path)}")
        fault = waiting.pop(0) if waiting else None
        if fault == "cut_before":
            raise Cut
        if fault == "unavailable":
            return refusal(503, "server_error", None, "The engine is currently overloaded, please try again later.")
        response = self.batches.answer(request)
        if fault == "cut_after":
            raise Cut(response)
        return response

    def _control(self, request: Request) -> Response:
        if request.path == "/_ledger":
            return Response.of(self.ledger.json(whole="brief" not in request.query) | {"forced": dict(self.faults.forced)})
        if request.path == "/_faults" and request.method == "POST":
            self.change(**request.json())
            return Response.of({"settings": asdict(self.settings)})
        if request.path == "/_reset" and request.method == "POST":
            self.ledger = Ledger()
            return Response.of({})
        return Response.of({}, 404)

    # Chat completions.

    async def _complete(self, request: Request) -> Response:
        try:
            question = question_of(request.json())
        except (ValueError, KeyError, TypeError) as error:
            return refusal(400, "invalid_request_error", "invalid_image" if isinstance(error, NoImage) else None, str(error))
        limited = self._limited(question)
        if limited is not None:
            return limited
        transport, content = self.faults.of_call(question.key)
        self.ledger.by_second[int(time.monotonic() - self.ledger.started)] += 1
        quota = self._quota_headers()
        await asyncio.sleep(self.settings.latency_s + (self.faults.slow_s if transport == "slow" else 0))
        broken = self._broken(transport)
        if broken is not None:
            broken.headers |= quota
            return broken
        status, body = self.complete(question, content)
        if status == 200:
            self.ledger.bill(question.key, body["usage"])
        response = Response.of(body, status, **{"x-request-id": request_id(question)}, **quota)
        if transport == "cut_after":
            raise Cut(response)
        return response

    def _limited(self, question: Question) -> Response | None:
        """429 of a quota; what is let in is taken from it."""
        tokens = usage_of(question, "x" * 400)["total_tokens"]
        waits = {"requests": self._requests.wait_s(1), "tokens": self._tokens.wait_s(tokens)}
        what, wait_s = max(waits.items(), key=lambda item: item[1])
        if wait_s <= 0:
            self._requests.take(1)
            self._tokens.take(tokens)
            return None
        self._requests.drop(1)
        limit = self.settings.requests_per_minute if what == "requests" else self.settings.tokens_per_minute
        name = "RPM" if what == "requests" else "TPM"
        message = (f"Rate limit reached for {question.body['model']} in organization org-fake on {what} per min ({name}): "
                   f"Limit {limit}. Please try again in {wait_s:.3f}s.")
        headers = {"retry-after": str(int(wait_s) + 1), "retry-after-ms": str(int(wait_s * 1000) + 1)} | self._quota_headers()
        return refusal(429, what, "rate_limit_exceeded", message, **headers)

    def _broken(self, fault: str | None) -> Response | None:
        if fault == "cut_before":
            raise Cut
        if fault in ("rate_limit", "rate_limit_silent"):
            headers = {"retry-after": f"{self.faults.retry_after_s:g}"} if fault == "rate_limit" else {}
            return refusal(429, "requests", "rate_limit_exceeded", "Rate limit reached for requests.", **headers)
        if fault == "no_quota":
            return refusal(429, "insufficient_quota", "insufficient_quota", "You exceeded your current quota.")
        if fault == "server_error":
            return refusal(500, "server_error", None, "The server had an error while processing your request.")
        if fault == "unavailable":
            return refusal(503, "server_error", None, "The engine is currently overloaded, please try again later.")
        if fault == "bad_gateway":
            return Response(502, b"<html><body><h1>502 Bad Gateway</h1></body></html>", kind="text/html")
        return None

    def _quota_headers(self) -> dict[str, str]:
        return {**self._requests.headers("requests"), **self._tokens.headers("tokens")} if self.settings.says_quota else {}

    def complete(self, question: Question, fault: str | None) -> tuple[int, dict[str, Any]]:
        """Status and body of the answer to a question that was let in."""
        body = question.body
        refused = self._refused(body)
        if refused is not None:
            return refused.status, json.loads(refused.body)
        if fault == "filtered_prompt":
            refused = refusal(400, "invalid_request_error", "content_filter", "The response was filtered by the content policy.")
            return 400, json.loads(refused.body)
        text, finish, declined = self._said(question, fault)
        usage = usage_of(question, text or declined or "")
        message = {"role": "assistant", "content": text, "refusal": declined, "annotations": []}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": finish}
        return 200, {"id": f"chatcmpl-{question.digest[:29]}", "object": "chat.completion", "created": CREATED,
                     "choices": [choice], "model": f"{body['model']}-2026-01-01", "usage": usage, "service_tier": "default",
                     "system_fingerprint": "fp_fake"}  # fmt: skip

    def _refused(self, body: dict[str, Any]) -> Response | None:
        if self.settings.models and body["model"] not in self.settings.models:
            return refusal(404, "invalid_request_error", "model_not_found", f"The model `{body['model']}` does not exist.")
        kind = (body.get("response_format") or {}).get("type")
        for name in self.settings.refuses:
            if name == kind:
                message = f"Invalid parameter: 'response_format' of type '{kind}' is not supported with this model."
                return refusal(400, "invalid_request_error", None, message, param="response_format")
            if name in body:
                message = f"Unsupported parameter: '{name}' is not supported with this model."
                return refusal(400, "invalid_request_error", "unsupported_parameter", message, param=name)
        return None

    def _said(self, question: Question, fault: str | None) -> tuple[str | None, str, str | None]:
        """Text, finish reason, refusal."""
        if fault == "refusal":
            return None, "stop", "I'm sorry, I can't help with that."
        if fault == "content_filter":
            return "", "content_filter", None
        schema = schema_of(question.body)
        value = self.speaker.say(question, schema) if schema else {"answer": "I see an image."}
        text = json.dumps(value, ensure_ascii=False)
        if self.settings.ignores_schema:
            text = f"Sure! Here is my answer:\n```json\n{json.dumps(value, indent=1)}\n```\nAnything else?"
        if fault == "invalid_json":
            text = text[: len(text) // 2] + "...,"
        if fault == "wrong_schema":
            text = json.dumps({"thoughts": "I was asked for something else.", "colour": 3})
        most = question.body.get("max_completion_tokens") or question.body.get("max_tokens") or 1 << 20
        if fault == "length" or -(-len(text) // 4) > most:
            return text[: min(len(text) // 2, most * 4)], "length", None
        return text, "stop", None


def refusal(status: int, kind: str, code: str | None, message: str, *, param: str | None = None, **headers: str) -> Response:
    """An error as OpenAI writes it."""
    return Response.of({"error": {"message": message, "type": kind, "param": param, "code": code}}, status, **headers)


def request_id(question: Question) -> str:
    """Of the content, for live calls and for lines of batches."""
    return f"req_{question.digest[:32]}"


def _pattern(path: str) -> str:
    parts = path.split("/")
    return "/".join([*parts[:3], "{id}", *parts[4:]]) if len(parts) > 3 and parts[2] in ("files", "batches") else path


def main() -> None:
    """Serves until it is interrupted."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--key", default=KEY)
    parser.add_argument("--latency", type=float, default=0.0, metavar="SECONDS")
    parser.add_argument("--requests-per-minute", type=int)
    parser.add_argument("--tokens-per-minute", type=int)
    parser.add_argument("--burst", type=float, default=60.0, metavar="SECONDS")
    parser.add_argument("--by", choices=("colour", "hash"), default="colour", help="what an image's label follows")
    parser.add_argument("--waver", type=float, default=0.1)
    parser.add_argument("--settings", default="{}", help="other fields of Settings and Faults, as JSON")
    given = parser.parse_args()
    speaker = Speaker(by_colour if given.by == "colour" else by_hash, given.waver)
    teacher = FakeTeacher(host=given.host, port=given.port, speaker=speaker, key=given.key, latency_s=given.latency,
                          requests_per_minute=given.requests_per_minute, tokens_per_minute=given.tokens_per_minute,
                          burst_s=given.burst)  # fmt: skip
    teacher.change(**json.loads(given.settings))
    with teacher:
        print(teacher.url, flush=True)
        threading.Event().wait()


if __name__ == "__main__":
    main()
