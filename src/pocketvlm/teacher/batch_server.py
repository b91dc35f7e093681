"""The files and batches of a server with OpenAI's protocol. Errors that may pass are tried again until the deadline."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from pocketvlm.teacher.endpoint import Endpoint
from pocketvlm.teacher.rate_headers import retry_after_s

LABEL = "pocketvlm_shard"
"""Key of the metadata by which a batch is found again."""
BACKOFF_S, MOST_BACKOFF_S = 0.5, 20.0
CLOCKS_S = 86_400.0
"""A batch's time is the server's; it is looked for among those that are this much older than its plan."""
READ_BYTES = 1 << 20

Made = TypeVar("Made")
Model = TypeVar("Model", bound=BaseModel)


class BatchError(BaseModel):
    code: str | None = None
    message: str | None = None
    line: int | None = None


class BatchErrors(BaseModel):
    data: list[BatchError] = []


class Counts(BaseModel):
    total: int = 0
    completed: int = 0
    failed: int = 0


class Batch(BaseModel):
    """As much as is used of a batch; a stranger's data."""

    id: str
    status: str
    created_at: float = 0.0
    input_file_id: str | None = None
    output_file_id: str | None = None
    error_file_id: str | None = None
    errors: BatchErrors | None = None
    request_counts: Counts | None = None
    metadata: dict[str, str] | None = None


class _File(BaseModel):
    id: str
    bytes: int = -1
    filename: str = ""


class _Files(BaseModel):
    data: list[_File]
    has_more: bool = False


class _Batches(BaseModel):
    data: list[Batch]
    has_more: bool = False


class _Passing(Exception):
    """Another try may fare better."""

    def __init__(self, said: str, wait_s: float | None = None) -> None:
        super().__init__(said)
        self.said, self.wait_s = said, wait_s


class BatchServer:
    """Methods raise TeacherUnavailable at the deadline, CredentialsError or UserError. On one event loop."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._client = endpoint.connect()
        self._dice = random.Random()

    async def close(self) -> None:
        await self._client.close()

    async def upload(self, path: Path, name: str) -> str:
        """The id of the file; an equal one of this name that is there already will do."""

        async def send() -> str:
            if tries and (found := await self._file_named(name, path.stat().st_size)) is not None:
                return found
            tries.append(1)
            with path.open("rb") as file:
                raw = await self._client.files.with_raw_response.create(file=(name, file, "application/jsonl"), purpose="batch")
            return _read(_File, raw.content).id

        tries: list[int] = []
        id = await self._tried(send)
        assert id is not None
        return id

    async def uploaded(self, name: str, size: int) -> str | None:
        """The id of a file that an earlier process has uploaded."""
        return await self._tried(lambda: self._file_named(name, size))

    async def create(
        self, file_id: str, mark: str, planned_at_s: float, confirm: Callable[[], bool], longest_s: float
    ) -> Batch | None:
        """The batch of a shard: found, or created. None: the file is gone, or `confirm` (asked before each try) said no.

        A try that broke may have created it, so every one looks first; and it ends within `longest_s` of `confirm`.
        """
        import openai

        async def look_and_create() -> Batch | None:
            found = await self._batch_of(mark, file_id, planned_at_s)
            if found is not None or not confirm():
                return found
            try:
                async with asyncio.timeout(longest_s):
                    raw = await self._client.batches.with_raw_response.create(
                        input_file_id=file_id, endpoint="/v1/chat/completions", completion_window="24h", metadata={LABEL: mark}
                    )
            except openai.APIStatusError as error:
                if error.status_code in (400, 404) and "input_file" in f"{error.param} {error.message}":
                    return None
                raise
            return _read(Batch, raw.content)

        return await self._tried(look_and_create)

    async def batch_of(self, mark: str, file_id: str, planned_at_s: float) -> Batch | None:
        """The batch of a shard that has not failed."""
        return await self._tried(lambda: self._batch_of(mark, file_id, planned_at_s))

    async def batch(self, id: str) -> Batch | None:
        """None: the server does not know it."""

        async def get() -> Batch:
            return _read(Batch, (await self._client.batches.with_raw_response.retrieve(id)).content)

        return await self._tried(get, unknown=True)

    async def download(self, file_id: str, path: Path) -> bool:
        """Whether it is there. `path` is written anew."""

        async def get() -> bool:
            async with self._client.files.with_streaming_response.content(file_id) as response:
                with path.open("wb") as file:
                    async for chunk in response.iter_bytes(READ_BYTES):
                        file.write(chunk)
            return True

        return await self._tried(get, unknown=True) or False

    async def forget(self, file_ids: Iterable[str | None]) -> list[str]:
        """Deletes files, if the server lets us: one try each. What it said otherwise."""
        import openai

        said = []
        for id in file_ids:
            try:
                if id:
                    await self._client.files.delete(id)
            except openai.NotFoundError:
                continue
            except openai.APIError as error:
                said.append(f"file {id} stays on the server: {self._endpoint.said(error)}")
        return said

    async def _file_named(self, name: str, size: int) -> str | None:
        after: dict[str, Any] = {}
        while True:
            raw = await self._client.files.with_raw_response.list(purpose="batch", limit=1000, order="desc", **after)
            page = _read(_Files, raw.content)
            for file in page.data:
                if file.filename == name and file.bytes == size:
                    return file.id
            if not page.has_more or not page.data:
                return None
            after = {"after": page.data[-1].id}

    async def _batch_of(self, mark: str, file_id: str, planned_at_s: float) -> Batch | None:
        """By its label, or by its file where a server keeps no labels. The oldest, should there be two."""
        found: Batch | None = None
        after: dict[str, Any] = {}
        while True:
            page = _read(_Batches, (await self._client.batches.with_raw_response.list(limit=100, **after)).content)
            for batch in page.data:
                ours = (batch.metadata or {}).get(LABEL) == mark or batch.input_file_id == file_id
                if ours and batch.status not in ("failed", "cancelling", "cancelled"):
                    found = batch
            old = page.data and page.data[-1].created_at < planned_at_s - CLOCKS_S
            if old or not page.has_more or not page.data:
                return found
            after = {"after": page.data[-1].id}

    async def _tried(self, call: Callable[[], Awaitable[Made]], *, unknown: bool = False) -> Made | None:
        """`unknown`: 404 is an answer, None."""
        import httpx2
        import openai

        failures, started_s = 0, time.monotonic()
        while True:
            try:
                return await call()
            except openai.APIStatusError as error:
                if unknown and error.status_code == 404:
                    return None
                if (fatal := self._endpoint.fatal(error)) is not None:
                    raise fatal from error
                passing = _Passing(self._endpoint.said(error), retry_after_s(error.response.headers))
            except openai.APIError as error:
                passing = _Passing(self._endpoint.said(error))
            except (TimeoutError, httpx2.HTTPError) as error:  # the latter in the middle of a download
                passing = _Passing(f"it did not answer in time or broke off ({type(error).__name__})")
            except _Passing as error:
                passing = error
            jitter_s = self._dice.uniform(0, min(MOST_BACKOFF_S, BACKOFF_S * 2.0**failures))
            wait_s = max(jitter_s, passing.wait_s or 0.0)
            failures += 1
            if time.monotonic() - started_s + wait_s > self._endpoint.teacher.deadline_s:
                raise self._endpoint.unavailable(f"nothing but errors in {self._endpoint.teacher.deadline_s:g} s, the last one: "
                                                 f"{passing.said}")  # fmt: skip
            await asyncio.sleep(wait_s)


def _read(model: type[Model], data: bytes) -> Model:
    try:
        return model.model_validate_json(data)
    except ValidationError as error:
        raise _Passing(f"it answered with something that is no {model.__name__.strip('_').lower()}") from error
