"""Brings one shard a step further, from its plan to its journalled answers. Every step can be killed and taken again.

What a server does for a shard is found again by its name before anything is done a second time; who may create its batch is
decided by compare-and-set of its record. Only the creation costs money, so only that is guarded: one process has the claim,
renews it before each try, and another takes it over when the record has not changed for a while.
"""

from __future__ import annotations

import math
import time
import uuid
from collections.abc import Collection, Mapping
from concurrent.futures import Future
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pocketvlm.artifacts.store import Store
from pocketvlm.errors import UserError
from pocketvlm.progress import Progress
from pocketvlm.run_file import Teacher
from pocketvlm.teacher.answers import Outcome, TeacherImage
from pocketvlm.teacher.batch_lines import Again, LineReader, LineWriter, Refused, Result, dialect_of, other_dialect
from pocketvlm.teacher.batch_server import Batch, BatchServer
from pocketvlm.teacher.endpoint import Endpoint
from pocketvlm.teacher.journal import Journal
from pocketvlm.teacher.question import TeacherQuestion
from pocketvlm.teacher.shards import Held, Repair, ShardBook

CLAIM_S = 120.0
"""A record that has not changed for so long has lost its process; a try to create a batch ends in half of it."""
ROUNDS = 4
"""A question is in at most so many batches that fail for it."""
OPEN_RECORDS = 500
"""Outcomes that wait for the journal at once."""

Images = Mapping[str, TeacherImage]
"""By custom id: those that somebody waits for."""


class ShardSteps:
    """Of one client. Methods raise TeacherUnavailable, CredentialsError, UserError, and what the store raises."""

    def __init__(
        self, teacher: Teacher, question: TeacherQuestion, journal: Journal, endpoint: Endpoint, store: Store, scratch: Path,
        progress: Progress, claim_s: float,
    ) -> None:  # fmt: skip
        self.book = ShardBook(store, question.key)
        self.writer = LineWriter(question)
        self.dialect = question.dialect()
        """For new shards."""
        self.most_requests = teacher.batch_requests
        """For new shards: less, where the server takes fewer tokens at once."""
        self._teacher, self._question, self._journal, self._endpoint = teacher, question, journal, endpoint
        self._scratch, self._progress, self._claim_s = scratch, progress, claim_s
        self._server = BatchServer(endpoint)
        self._claims: dict[str, str] = {}
        """Shard -> our claim on the creation of its batch."""
        self._seen: dict[str, tuple[str, float]] = {}
        """Shard -> its record's tag, and since when."""
        self._crowded: dict[str, tuple[frozenset[str], float, int]] = {}
        """Shard for which there was no room -> shards that took it, since when, how often."""
        self._polled: dict[str, float] = {}
        """Batch -> when it was looked at."""
        self._numbers: dict[str, int] = {}
        self._told: dict[str, tuple[str, int]] = {}

    async def close(self) -> None:
        await self._server.close()

    async def advance(self, held: Held, images: Images, created: Collection[str]) -> Held | None:
        """The shard one step further; as it was, if there is nothing to do but wait; None once it has ended.

        `created`: shards that are on the server now.
        """
        self._numbers.setdefault(held.shard.id, len(self._numbers) + 1)
        status = held.shard.status
        if status == "planned":
            return await self._upload(held, images)
        if status == "uploaded":
            return self._claimed(held) if self._has_room(held, created) else held
        if status == "creating":
            return await self._create(held)
        assert status == "created", status
        now = time.monotonic()
        if now - self._polled.get(held.shard.batch_id, -math.inf) < 0.9 * self._teacher.batch_poll_s:
            return held
        self._polled[held.shard.batch_id] = now
        batch = await self._server.batch(held.shard.batch_id)
        if batch is None:
            raise UserError(f"{self._endpoint.name}: it does not know batch {held.shard.batch_id} of an earlier run; use the "
                            f"key of that run, or delete {self.book.path(held.shard.id)} in the store: then what it asked is "
                            "asked and paid for again")  # fmt: skip
        self._tell(held, batch)
        if batch.status == "failed":
            return await self._failed(held, batch, images, created)
        if batch.status in ("completed", "expired", "cancelled"):
            return await self._collect(held, batch, images)
        return held

    def plans(self, ids: Collection[str], images: Images, **content: Any) -> list[dict[str, Any]]:
        """What `Shard.plan` takes for shards of these questions, by bytes and count."""
        repairs: Mapping[str, Repair] = content.pop("repairs", {})
        content = {"dialect": asdict(self.dialect), "planned_at_s": time.time(), **content}
        parts = self.writer.split(ids, images, repairs, self._teacher.batch_bytes, self.most_requests)
        return [{"ids": part, "repairs": {id: repairs[id] for id in part if id in repairs}, **content} for part in parts]

    # From plan to batch.

    async def _upload(self, held: Held, images: Images) -> Held | None:
        shard = held.shard
        if not all(id in images for id in shard.ids):  # another run's, that asks more than ours
            if self._is_left(held):
                self.book.give_up(held)
            return self._again(held, same=held)
        path, name = self._scratch_file(), f"{shard.mark}.jsonl"
        try:
            size = self.writer.write(path, shard, images)
            file_id = await self._server.uploaded(name, size) or await self._server.upload(path, name)
        finally:
            path.unlink(missing_ok=True)
        return self.book.change(held, status="uploaded", file_id=file_id) or self._again(held)

    def _scratch_file(self) -> Path:
        return self._scratch / f"{uuid.uuid4().hex}.jsonl"

    def _claimed(self, held: Held) -> Held | None:
        claim = self._claims[held.shard.id] = uuid.uuid4().hex
        return self.book.change(held, status="creating", claim=claim) or self._again(held)

    async def _create(self, held: Held) -> Held | None:
        shard = held.shard
        if shard.claim != self._claims.get(shard.id):
            batch = await self._server.batch_of(shard.mark, shard.file_id, shard.planned_at_s)
            if batch is None:
                return self._claimed(held) if self._is_left(held) else self._again(held, same=held)
        else:
            renewed: list[Held] = [held]

            def renew() -> bool:
                claim = uuid.uuid4().hex
                fresh = self.book.change(renewed[-1], claim=claim)
                if fresh is not None:
                    self._claims[shard.id] = claim
                    renewed.append(fresh)
                return fresh is not None

            batch = await self._server.create(shard.file_id, shard.mark, shard.planned_at_s, renew, self._claim_s / 2)
            held = renewed[-1]
            if batch is None:  # the file is gone, or somebody has taken the claim over
                return self.book.change(held, status="planned", file_id="", claim="") or self._again(held)
        return self.book.change(held, status="created", batch_id=batch.id) or self._again(held)

    def _again(self, held: Held, same: Held | None = None) -> Held | None:
        """The shard as somebody else has changed it; `same`, if nobody has."""
        fresh = self.book.read(held.shard.id)
        if fresh is None or fresh.shard.status == "ended":
            return None
        return same if same is not None and same.tag == fresh.tag else fresh

    def _is_left(self, held: Held) -> bool:
        """Whether its record has not changed for `claim_s`, by our own clock."""
        now = time.monotonic()
        tag, since = self._seen.get(held.shard.id, ("", now))
        if tag != held.tag:
            self._seen[held.shard.id] = held.tag, now
            return False
        return now - since >= self._claim_s

    # From batch to answers.

    async def _collect(self, held: Held, batch: Batch, images: Images) -> Held | None:
        reader = LineReader(held.shard, self._question, self._endpoint)
        collected = _Collected(self._journal)
        path = self._scratch_file()
        try:
            for file_id in (batch.output_file_id, batch.error_file_id):
                if not file_id:
                    continue
                if not await self._server.download(file_id, path):
                    return self._gone(held, file_id)
                for id, result in reader.read(path):
                    collected.add(id, result)
        finally:
            path.unlink(missing_ok=True)
        for id, result in reader.missing():
            collected.add(id, result)
        collected.settle()
        if self.book.end(held, self._successors(held, collected, images)) is not None:
            for said in await self._server.forget([held.shard.file_id, batch.output_file_id, batch.error_file_id]):
                self._progress.warn(said)
        self._check(held, batch, collected)
        return None

    def _gone(self, held: Held, file_id: str) -> Held | None:
        """Its answers are not on the server: another process has collected them, or somebody has deleted them."""
        fresh = self._again(held)
        if fresh is not None:
            raise UserError(f"{self._endpoint.name}: file {file_id}, the answers of batch {held.shard.batch_id}, is gone; delete "
                            f"{self.book.path(held.shard.id)} in the store: then what it asked is asked and paid for again")
        return None

    def _successors(self, held: Held, collected: _Collected, images: Images) -> list[dict[str, Any]]:
        """Shards of what is asked once more. What nobody waits for now is planned when somebody does."""
        shard, plans = held.shard, []
        dialect, refused = dialect_of(shard.dialect, self._question), list(collected.refused.values())
        other = next((found for error in refused if (found := other_dialect(dialect, error, self._question))), None)
        if other is not None:
            self.dialect = dialect = other
            plans += self._kept(held, [*collected.refused], {}, images, shard.round, asdict(dialect))
        plans += self._kept(held, [*collected.repairs], collected.repairs, images, shard.round, asdict(dialect))
        if shard.round + 1 < ROUNDS:
            plans += self._kept(held, [*collected.again], {}, images, shard.round + 1, asdict(dialect))
        return plans

    def _kept(self, held: Held, ids: list[str], repairs: Mapping[str, Repair], images: Images, round: int,
              dialect: dict[str, str]) -> list[dict[str, Any]]:  # fmt: skip
        """A question that repaired an answer goes on to."""
        wanted = [id for id in held.shard.ids if id in set(ids) and id in images]
        kept = {id: repair for id in wanted if (repair := repairs.get(id) or held.shard.repairs.get(id))}
        return self.plans(wanted, images, repairs=kept, round=round, dialect=dialect) if wanted else []

    def _check(self, held: Held, batch: Batch, collected: _Collected) -> None:
        """Raises for what no other batch can mend. What was answered is journalled."""
        for error in collected.refused.values():
            if other_dialect(dialect_of(held.shard.dialect, self._question), error, self._question) is None:
                fatal = self._endpoint.fatal(error)
                raise fatal if fatal is not None else self._endpoint.unavailable(self._endpoint.said(error))
        if batch.status == "cancelled" and collected.again:
            raise UserError(f"{self._endpoint.name}: somebody has cancelled batch {batch.id}; start again to ask the "
                            f"{len(collected.again)} questions that it did not answer")
        if collected.again and held.shard.round + 1 >= ROUNDS:
            said = next(iter(collected.again.values()))
            count = len(collected.again)
            raise self._endpoint.unavailable(f"{count} questions had no answer in {ROUNDS} batches, the last time: {said}")

    # When a batch is refused.

    async def _failed(self, held: Held, batch: Batch, images: Images, created: Collection[str]) -> Held | None:
        errors = batch.errors.data if batch.errors else []
        said = "; ".join(f"{f'line {error.line}: ' if error.line else ''}{error.message or error.code}" for error in errors[:3])
        if not any(error.code == "token_limit_exceeded" or "nqueued token limit" in (error.message or "") for error in errors):
            self.book.end(held)
            reason = self._endpoint.redacted(said) or "no reason was given"
            raise UserError(f"{self._endpoint.name} refused batch {batch.id} of {len(held.shard.ids):,} questions: {reason}")
        others = frozenset(id for id in created if id != held.shard.id)
        count = self._crowded.get(held.shard.id, (others, 0.0, 0))[2] + (not others)
        self._crowded[held.shard.id] = others, time.monotonic(), count
        if count < 2:
            return self.book.change(held, status="uploaded", batch_id="", claim="") or self._again(held)
        return await self._halve(held, said, images)

    async def _halve(self, held: Held, said: str, images: Images) -> Held | None:
        """No other batch of ours is there, and still there is no room."""
        shard = held.shard
        if len(shard.ids) < 2:
            raise UserError(f"{self._endpoint.name} has no room for a batch of one question: {self._endpoint.redacted(said)}")
        self.most_requests = min(self.most_requests, -(-len(shard.ids) // 2))
        self._progress.line(f"the teacher takes fewer tokens at once: batches of {self.most_requests:,} from now on")
        wanted = [id for id in shard.ids if id in images]
        content = {"round": shard.round, "dialect": shard.dialect}
        if self.book.end(held, self.plans(wanted, images, repairs=shard.repairs, **content)) is not None:
            await self._server.forget([shard.file_id])
        return None

    def _has_room(self, held: Held, created: Collection[str]) -> bool:
        """Whether to try again where the server had no room: once another batch has ended, or after a while if there was none."""
        if held.shard.id not in self._crowded:
            return True
        others, since, _ = self._crowded[held.shard.id]
        return not others <= set(created) if others else time.monotonic() - since >= self._teacher.batch_poll_s

    def _tell(self, held: Held, batch: Batch) -> None:
        """One line for each change of state, and at each tenth of the answers."""
        counts, total = batch.request_counts, len(held.shard.ids)
        done = min(total, counts.completed + counts.failed) if counts else 0
        news = batch.status, done * 10 // max(1, total)
        if self._told.get(held.shard.id) != news:
            self._told[held.shard.id] = news
            number = f"{self._numbers[held.shard.id]} of {len(self._numbers)}"
            self._progress.line(f"batch {number}, {self._endpoint.redacted(batch.status)}: {done:,} of {total:,} answered")


class _Collected:
    """Results of a shard; outcomes go to the journal as they come."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._waiting: list[Future[None]] = []
        self.repairs: dict[str, Repair] = {}
        self.again: dict[str, str] = {}
        self.refused: dict[str, Any] = {}

    def add(self, id: str, result: Result) -> None:
        if isinstance(result, Outcome):
            self._waiting.append(self._journal.submit(result))
            if len(self._waiting) >= OPEN_RECORDS:
                self.settle()
        elif isinstance(result, Repair):
            self.repairs[id] = result
        elif isinstance(result, Again):
            self.again[id] = result.said
        else:
            assert isinstance(result, Refused)
            self.refused[id] = result.error

    def settle(self) -> None:
        """Returns once every outcome is durable."""
        for done in self._waiting:
            done.result()
        self._waiting.clear()
