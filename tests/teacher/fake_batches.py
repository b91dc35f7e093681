"""Files and batches of the fake teacher, with the limits and the words of the real one.

Faults of the next batches (`Faults.batches`): `expired` ends with half of the answers; `invalid_file` fails validation whatever
the file holds; `token_limit` says that too many tokens wait; `stuck` stays in progress until `free` is called.
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import json
import random
import time
from typing import TYPE_CHECKING, Any

from fake_answers import NoImage, Question, question_of, usage_of
from fake_http import Request, Response

if TYPE_CHECKING:
    from fake_teacher import FakeTeacher

MOST_BYTES = 200_000_000
MOST_REQUESTS = 50_000
STEPS = 4
"""In which a batch answers its lines."""
UNFINISHED = ("validating", "in_progress", "finalizing", "cancelling")

Raw = dict[str, Any]


class Batches:
    """All that was uploaded and asked, in memory."""

    def __init__(self, teacher: FakeTeacher) -> None:
        self._teacher = teacher
        self._number = itertools.count(1)
        self._free = asyncio.Event()
        self._tokens: dict[str, int] = {}
        self.files: dict[str, tuple[Raw, bytes]] = {}
        """Id -> file object and content."""
        self.batches: dict[str, Raw] = {}

    def free(self) -> None:
        """Lets `stuck` batches go on; from any thread."""
        self._free.set()

    def answer(self, request: Request) -> Response:
        """Routes /v1/files and /v1/batches."""
        what, *rest = request.path.removeprefix("/v1/").split("/")
        route = (request.method, what, len(rest), rest[1] if len(rest) > 1 else "")
        if route == ("POST", "files", 0, ""):
            return self._upload(request)
        if route == ("POST", "batches", 0, ""):
            return self._create(request.json())
        if route == ("GET", "files", 0, ""):
            found = [file for file, _ in self.files.values() if request.query.get("purpose") in (None, file["purpose"])]
            return _page(found, request, 10_000)
        if route == ("GET", "batches", 0, ""):
            return _page(list(self.batches.values()), request, 20)
        known = self.files if what == "files" else self.batches
        if not rest or rest[0] not in known:
            return _refusal(404, f"No such {'File object' if what == 'files' else 'batch'}: {rest[0] if rest else ''}")
        return self._one(request.method, what, rest)

    def _one(self, method: str, what: str, rest: list[str]) -> Response:
        if what == "files":
            file, content = self.files[rest[0]]
            if rest[1:] == ["content"]:
                return Response(200, content, kind="application/octet-stream")
            if method == "DELETE":
                del self.files[rest[0]]
                return Response.of({"id": file["id"], "object": "file", "deleted": True})
            return Response.of(file)
        batch = self.batches[rest[0]]
        if rest[1:] == ["cancel"] and batch["status"] in UNFINISHED:
            batch["status"] = "cancelling"
        return Response.of(batch)

    def _upload(self, request: Request) -> Response:
        form = request.form()
        name, content = form["file"]
        if len(content) > MOST_BYTES:
            return _refusal(413, "The file is too large: at most 200 MB for purpose batch.")
        return Response.of(self._keep(name, content, form["purpose"][1].decode()))

    def _keep(self, name: str, content: bytes, purpose: str) -> Raw:
        id = f"file-{next(self._number):024d}"
        file = {"id": id, "object": "file", "bytes": len(content), "created_at": _now(), "filename": name, "purpose": purpose,
                "status": "processed", "expires_at": None, "status_details": None}  # fmt: skip
        self.files[id] = file, content
        return file

    def _create(self, asked: Raw) -> Response:
        if asked.get("input_file_id") not in self.files:
            return _refusal(400, f"No such File object: {asked.get('input_file_id')}", "input_file_id")
        if asked.get("completion_window") != "24h":
            return _refusal(400, "Invalid value for completion_window: only 24h is supported.", "completion_window")
        id = f"batch_{next(self._number):024d}"
        times = dict.fromkeys(("in_progress_at", "finalizing_at", "completed_at", "failed_at", "expired_at", "cancelling_at",
                               "cancelled_at"))  # fmt: skip
        batch = {"id": id, "object": "batch", "endpoint": asked["endpoint"], "errors": None, "completion_window": "24h",
                 "input_file_id": asked["input_file_id"], "status": "validating", "output_file_id": None, "error_file_id": None,
                 "created_at": _now(), "expires_at": _now() + 86400, "model": None,
                 "metadata": asked.get("metadata"),
                 "request_counts": {"total": 0, "completed": 0, "failed": 0}, **times}  # fmt: skip
        self.batches[id] = batch
        faults = self._teacher.faults.batches
        self._teacher.server.spawn(self._work(batch, faults.popleft() if faults else "ok"))
        return Response.of(batch)

    async def _work(self, batch: Raw, fault: str) -> None:
        """A batch from validating to its end."""
        step_s = self._teacher.settings.batch_step_s
        await asyncio.sleep(step_s)
        lines = self._validated(batch, fault)
        if lines is None:
            return
        batch["status"], batch["in_progress_at"] = "in_progress", _now()
        out: list[Raw] = []
        failed: list[Raw] = []
        served = len(lines) // 2 if fault == "expired" else len(lines)
        for step in range(STEPS):
            await asyncio.sleep(step_s)
            if fault == "stuck":
                await self._free.wait()
            if batch["status"] == "cancelling":
                served = len(out) + len(failed)
                break
            for line, question in lines[served * step // STEPS : served * (step + 1) // STEPS]:
                self._serve(line, question, out, failed)
            batch["request_counts"] |= {"completed": len(out), "failed": len(failed)}
        end = {"cancelling": "cancelled"}.get(batch["status"], "expired" if fault == "expired" else "completed")
        failed += [_error_line(line, f"batch_{end}", "This request could not be executed before the completion window expired.")
                   for line, _ in lines[served:]]  # fmt: skip
        await self._finish(batch, end, out, failed)

    async def _finish(self, batch: Raw, end: str, out: list[Raw], failed: list[Raw]) -> None:
        if batch["status"] == "in_progress":
            batch["status"] = "finalizing"
            await asyncio.sleep(self._teacher.settings.batch_step_s)
        for name, lines in (("output", out), ("error", failed)):
            if lines:
                if self._teacher.settings.shuffled:
                    random.Random(batch["id"]).shuffle(lines)
                content = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines).encode()
                batch[f"{name}_file_id"] = self._keep(f"{batch['id']}_{name}.jsonl", content, "batch_output")["id"]
        batch["status"], batch[f"{end}_at"] = end, _now()
        self._tokens.pop(batch["id"], None)

    def _validated(self, batch: Raw, fault: str) -> list[tuple[Raw, Question]] | None:
        """The lines with their questions; None: the batch has failed."""
        content = self.files[batch["input_file_id"]][1].decode() if batch["input_file_id"] in self.files else ""
        errors: list[Raw] = []
        lines: list[tuple[Raw, Question]] = []
        seen: set[str] = set()
        for number, text in enumerate(content.splitlines(), start=1):
            problem = _read_line(text, batch["endpoint"], seen, lines)
            if problem:
                errors.append({"code": problem[0], "message": problem[1], "line": number, "param": None})
        if not lines and not errors:
            errors.append(_error("empty_file", "The batch input file is empty or gone."))
        if len(lines) > MOST_REQUESTS:
            errors.append(_error("request_limit_exceeded", "The batch has more than 50,000 requests."))
        if len({line["body"]["model"] for line, _ in lines}) > 1:
            errors.append(_error("mismatched_model", "The provided models are not one."))
        if fault == "invalid_file":
            errors.append(_error("invalid_json_line", "This line is not parseable as valid JSON."))
        tokens = sum(usage_of(question, "")["prompt_tokens"] for _, question in lines)
        most = self._teacher.settings.enqueued_tokens
        if fault == "token_limit" or (most is not None and sum(self._tokens.values()) + tokens > most):
            model = lines[0][0]["body"]["model"] if lines else "?"
            errors.append(_error("token_limit_exceeded", f"Enqueued token limit reached for {model} in organization org-fake. "
                          f"Limit: {most or 0:,} enqueued tokens. Please try again once some in_progress batches have been "
                          "completed."))  # fmt: skip
        batch["request_counts"]["total"] = len(lines)
        if errors:
            batch |= {"status": "failed", "failed_at": _now(), "errors": {"object": "list", "data": errors[:100]}}
            return None
        self._tokens[batch["id"]] = tokens
        return lines

    def _serve(self, line: Raw, question: Question, out: list[Raw], failed: list[Raw]) -> None:
        """Answers one line; billed once, here."""
        broken, content = self._teacher.faults.of_line(question.key)
        if broken:
            error = {"message": "The server had an error.", "type": "server_error", "param": None, "code": None}
            status, body = 500, {"error": error}
        else:
            status, body = self._teacher.complete(question, content)
        if status == 200:
            self._teacher.ledger.bill(question.key, body["usage"], line["custom_id"])
        response = {"status_code": status, "request_id": f"req_{question.digest[:32]}", "body": body}
        id = f"batch_req_{question.digest[:24]}"
        (out if status == 200 else failed).append({"id": id, "custom_id": line["custom_id"], "response": response, "error": None})


def _read_line(text: str, endpoint: str, seen: set[str], lines: list[tuple[Raw, Question]]) -> tuple[str, str] | None:
    try:
        line = json.loads(text)
        question = question_of(line["body"])
    except NoImage as error:
        return "invalid_image", str(error)
    except (ValueError, KeyError, TypeError):
        return "invalid_json_line", "This line is not parseable as valid JSON."
    if line.get("method") != "POST" or line.get("url") != endpoint:
        return "invalid_url", f"The URL provided for this request does not match the batch endpoint {endpoint}."
    if line["custom_id"] in seen:
        return "duplicate_custom_id", f"The custom_id for this request is a duplicate of another request: {line['custom_id']}."
    seen.add(line["custom_id"])
    # The image can be read from the line again; the question keeps what the answer needs.
    lines.append((line, question))
    return None


def _now() -> int:
    return int(time.time())


def _error(code: str, message: str) -> Raw:
    return {"code": code, "message": message, "line": None, "param": None}


def _error_line(line: Raw, code: str, message: str) -> Raw:
    id = hashlib.sha256(line["custom_id"].encode()).hexdigest()[:24]
    error = {"code": code, "message": message}
    return {"id": f"batch_req_{id}", "custom_id": line["custom_id"], "response": None, "error": error}


def _page(found: list[Raw], request: Request, usual: int) -> Response:
    """Newest first, from after the id `after`."""
    newest = found[::-1]
    ids = [item["id"] for item in newest]
    start = ids.index(request.query["after"]) + 1 if request.query.get("after") in ids else 0
    end = start + int(request.query.get("limit", usual))
    data = newest[start:end]
    return Response.of({"object": "list", "data": data, "first_id": data[0]["id"] if data else None,
                        "last_id": data[-1]["id"] if data else None, "has_more": end < len(newest)})  # fmt: skip


def _refusal(status: int, message: str, param: str | None = None) -> Response:
    return Response.of({"error": {"message": message, "type": "invalid_request_error", "param": param, "code": None}}, status)
