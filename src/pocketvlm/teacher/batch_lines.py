"""The lines of batch files: questions on their way out, answers on their way in. One line at a time is in memory."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ValidationError

from pocketvlm.teacher.answers import Outcome, TeacherImage
from pocketvlm.teacher.completion import Asked, judge, read_completion
from pocketvlm.teacher.endpoint import Endpoint, is_bad_image, is_filtered, names
from pocketvlm.teacher.question import REPAIR_CHARACTERS, Dialect, TeacherQuestion
from pocketvlm.teacher.shards import Repair, Shard

if TYPE_CHECKING:
    import openai

URL = "/v1/chat/completions"


def custom_id(sha256: str, vote: int) -> str:
    return f"{sha256}-{vote}"


def vote_of(id: str) -> tuple[str, int]:
    """Sha256 of the image, vote."""
    sha256, _, vote = id.rpartition("-")
    return sha256, int(vote)


class LineWriter:
    """Makes lines of questions, and knows their size beforehand."""

    def __init__(self, question: TeacherQuestion) -> None:
        self._question = question
        self._repair_bytes = 0
        """More of a line that asks for a repair; an upper bound, since JSON may need 6 bytes for a character."""
        self._empty_bytes: dict[int, int] = {}

    def size(self, image: TeacherImage, vote: int, *, repaired: bool) -> int:
        """Most bytes of a line."""
        if vote not in self._empty_bytes:
            self._empty_bytes[vote] = len(self.line(image.sha256, vote, b"", question_dialect(self._question), None)) + 100
        if repaired and not self._repair_bytes:
            messages = self._question.repair([], "", "")
            self._repair_bytes = len(json.dumps(messages)) + 6 * (REPAIR_CHARACTERS + 300)
        return self._empty_bytes[vote] + -(-image.jpeg_bytes // 3) * 4 + (self._repair_bytes if repaired else 0)

    def line(self, sha256: str, vote: int, jpeg: bytes, dialect: Dialect, repair: Repair | None) -> bytes:
        body = self._question.body(jpeg, vote, dialect)
        if repair is not None:
            body["messages"] = self._question.repair(body["messages"], repair.text, repair.outcome.detail)
        line = {"custom_id": custom_id(sha256, vote), "method": "POST", "url": URL, "body": body}
        return json.dumps(line, separators=(",", ":")).encode() + b"\n"

    def write(self, path: Path, shard: Shard, images: Mapping[str, TeacherImage]) -> int:
        """All lines of a shard; `images` by custom id. Returns the bytes."""
        dialect = dialect_of(shard.dialect, self._question)
        with path.open("wb") as file:
            for id in shard.ids:
                sha256, vote = vote_of(id)
                file.write(self.line(sha256, vote, images[id].read(), dialect, shard.repairs.get(id)))
            return file.tell()

    def split(self, ids: Iterable[str], images: Mapping[str, TeacherImage], repairs: Mapping[str, Repair], most_bytes: int,
              most: int) -> Iterator[list[str]]:  # fmt: skip
        """In their order; a line that is too large by itself is alone."""
        some: list[str] = []
        total = 0
        for id in ids:
            size = self.size(images[id], vote_of(id)[1], repaired=id in repairs)
            if some and (len(some) >= most or total + size > most_bytes):
                yield some
                some, total = [], 0
            some.append(id)
            total += size
        if some:
            yield some


def question_dialect(question: TeacherQuestion) -> Dialect:
    """How to begin."""
    return question.dialect()


def dialect_of(kept: Mapping[str, Any], question: TeacherQuestion) -> Dialect:
    """As a shard keeps it."""
    return replace(question.dialect(), **kept)


class _Body(BaseModel):
    status_code: int = 0
    request_id: str | None = None
    body: Any = None


class _Error(BaseModel):
    code: str | None = None
    message: str | None = None


class _Line(BaseModel):
    """A line of an output or error file; a stranger's data."""

    custom_id: str
    response: _Body | None = None
    error: _Error | None = None


@dataclass(frozen=True)
class Again:
    """A question to be asked again, since the server did not get to it, or failed."""

    said: str


@dataclass(frozen=True)
class Refused:
    """A question to be asked in another way, or never: the server refuses how it is asked."""

    error: openai.APIStatusError


Result = Outcome | Repair | Again | Refused


class LineReader:
    """What came back for the questions of a shard."""

    def __init__(self, shard: Shard, question: TeacherQuestion, endpoint: Endpoint) -> None:
        self._shard, self._question, self._endpoint = shard, question, endpoint
        self._left = set(shard.ids)

    def read(self, path: Path) -> Iterator[tuple[str, Result]]:
        """Custom id and result of each line; the first line of an id counts, and those of strangers do not."""
        with path.open("rb") as file:
            for data in file:
                try:
                    line = _Line.model_validate_json(data)
                except ValidationError:
                    continue  # whose line it was is asked again
                if line.custom_id in self._left:
                    self._left.remove(line.custom_id)
                    yield line.custom_id, self._result(line)

    def missing(self) -> Iterator[tuple[str, Result]]:
        """Those that no file has."""
        for id in self._shard.ids:
            if id in self._left:
                yield id, Again("the files of the batch do not have it")

    def _result(self, line: _Line) -> Result:
        response = line.response
        if response is None:
            error = line.error or _Error()
            return Again(self._endpoint.redacted(f"{error.code or 'error'}: {error.message or 'no reason was given'}"))
        if response.status_code != 200:
            return self._failed(line.custom_id, response)
        completion = read_completion(response.body)
        if completion is None:
            return Again("it answered with something that is no chat completion")
        asked = self._asked(line.custom_id)
        done = judge(asked, completion, response.request_id or "", self._question, self._endpoint.redacted, batched=True)
        if isinstance(done, Outcome):
            return done
        invalid = asked.outcome("invalid", detail=self._endpoint.redacted(done[1]))
        return invalid if line.custom_id in self._shard.repairs else Repair(text=done[0][:REPAIR_CHARACTERS], outcome=invalid)

    def _failed(self, id: str, response: _Body) -> Result:
        error = status_error(response)
        if is_filtered(error) or is_bad_image(error):
            asked = self._asked(id)
            asked.request_id = self._endpoint.redacted(response.request_id or "")
            return asked.outcome("filtered" if is_filtered(error) else "invalid", detail=self._endpoint.said(error))
        asks_otherwise = names(error, "max_tokens", "max_completion_tokens", "response_format", "json_schema", "json_object")
        if asks_otherwise or self._endpoint.fatal(error) is not None:
            return Refused(error)
        return Again(self._endpoint.said(error))

    def _asked(self, id: str) -> Asked:
        sha256, vote = vote_of(id)
        repair = self._shard.repairs.get(id)
        if repair is None:
            return Asked(sha256, vote)
        return Asked(sha256, vote, repair.outcome.calls, repair.outcome.usage)


def other_dialect(dialect: Dialect, error: openai.APIStatusError, question: TeacherQuestion) -> Dialect | None:
    """The way to ask that an error asks for; None: there is none."""
    begun = question.dialect()
    if names(error, "max_tokens", "max_completion_tokens") and dialect.token_limit == begun.token_limit:
        return dialect.other_limit()
    if question.teacher.structure == "auto" and names(error, "response_format", "json_schema", "json_object"):
        return dialect.plainer()
    return None


def status_error(response: _Body) -> openai.APIStatusError:
    """The error of a line, as a live call would have raised it."""
    import httpx2
    import openai

    body = response.body.get("error", response.body) if isinstance(response.body, dict) else {}
    message = str(body.get("message", "")) if isinstance(body, dict) else ""
    answer = httpx2.Response(response.status_code, request=httpx2.Request("POST", f"http://teacher{URL}"))
    return openai.APIStatusError(message or f"status {response.status_code}", response=answer, body=body)
