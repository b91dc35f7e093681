"""A teacher that is asked in batches: files of questions that are answered within a day, at half the price.

One thread does all the work: it takes images, looks what the journal and the open shards have, plans shards of the rest, and
brings each of them forward until its answers are journalled. Whatever it has done is in the store or on the server, so it can be
killed at any moment, and two processes can do it at once; see `shards` and `batch_steps`.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import SecretStr

from pocketvlm.artifacts.store import Store
from pocketvlm.progress import Progress
from pocketvlm.run_file import Teacher
from pocketvlm.teacher.answers import Outcome, TeacherImage
from pocketvlm.teacher.batch_lines import custom_id, vote_of
from pocketvlm.teacher.batch_steps import CLAIM_S, ShardSteps
from pocketvlm.teacher.budget import Budget, cost_usd
from pocketvlm.teacher.endpoint import Endpoint
from pocketvlm.teacher.journal import Journal
from pocketvlm.teacher.live import LiveTicket
from pocketvlm.teacher.question import TeacherQuestion
from pocketvlm.teacher.shards import Held, Shard
from pocketvlm.teacher.stats import Stats

FIRST_IMAGES = 32
"""Of the first shard under a cap, while nothing is known of what an answer costs."""
END_S = 10.0
"""Time for connections to close."""


@dataclass
class _Wanted:
    """An answer that somebody waits for."""

    image: TeacherImage
    tickets: list[LiveTicket] = field(default_factory=list)


class BatchClient:
    """One teacher by batches; a context manager. Closing it leaves batches on the server, to be collected by the next run."""

    def __init__(
        self, teacher: Teacher, question: TeacherQuestion, journal: Journal, *, store: Store, scratch: Path,
        key: SecretStr | None, budget: Budget, progress: Progress, claim_s: float = CLAIM_S,
    ) -> None:  # fmt: skip
        """Asks nothing yet. Raises CredentialsError when OpenAI's endpoint is meant and there is no key.

        `claim_s`: a shard whose record another process has not changed for so long is taken over.
        """
        self.stats = Stats()
        self._teacher, self._question, self._journal, self._budget = teacher, question, journal, budget
        self._endpoint = Endpoint(teacher, key)
        self._make_steps = partial(ShardSteps, teacher, question, journal, self._endpoint, store, scratch, progress, claim_s)
        self._steps: ShardSteps | None = None
        self._queue: deque[tuple[LiveTicket, TeacherImage | None]] = deque()
        """Images in order; None: a ticket's end."""
        self._open: set[LiveTicket] = set()
        self._wanted: dict[str, _Wanted] = {}
        """By custom id."""
        self._unplanned: list[str] = []
        """Of them, those that are in no shard that we know of."""
        self._shards: dict[str, Held] = {}
        self._paid: dict[str, float] = {}
        """Custom id -> US dollars, of new and journalled answers: each is paid once."""
        self._loop = asyncio.new_event_loop()
        self._news = asyncio.Event()
        self._thread: threading.Thread | None = None
        self._fatal: BaseException | None = None
        self._closed = False

    def __enter__(self) -> BatchClient:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def ask(self, images: Sequence[TeacherImage]) -> LiveTicket:
        assert not self._closed, "a closed client is asked nothing"
        ticket = LiveTicket(images, self._journal, self._teacher.votes)
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name=f"teacher {self._teacher.model}", daemon=True)
            self._thread.start()
        self._loop.call_soon_threadsafe(self._take, ticket)
        return ticket

    def wait_s(self) -> float:
        return 0.0  # what a batch waits for has lines of its own

    def close(self) -> None:
        """Ends at once."""
        if self._closed:
            return
        self._closed = True
        if self._thread is not None:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(END_S)
        else:
            self._loop.close()
        self._journal.close()

    # On the event loop.

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        work = self._loop.create_task(self._work())
        work.add_done_callback(self._ended)
        try:
            self._loop.run_forever()
            work.cancel()
            self._loop.run_until_complete(asyncio.gather(work, return_exceptions=True))
            if self._steps is not None:
                self._loop.run_until_complete(self._steps.close())
        finally:
            self._loop.close()

    def _ended(self, work: asyncio.Task[None]) -> None:
        """The first error ends all tickets, of now and later."""
        self._fatal = RuntimeError("the client was closed") if work.cancelled() else work.exception()
        self._fail_tickets()

    def _fail_tickets(self) -> None:
        assert self._fatal is not None
        for ticket in self._open:
            ticket.fail(self._fatal)
        self._open.clear()

    def _take(self, ticket: LiveTicket) -> None:
        self._open.add(ticket)
        if self._fatal is not None:
            self._fail_tickets()
            return
        self._queue.extend((ticket, image) for image in ticket.images)
        self._queue.append((ticket, None))
        self._news.set()

    async def _work(self) -> None:
        while True:
            self._news.clear()
            moved = self._look_up() + self._plan()
            images = {id: wanted.image for id, wanted in self._wanted.items()}
            for held in list(self._shards.values()):
                created = [id for id, other in self._shards.items() if other.shard.status == "created"]
                assert self._steps is not None
                after = await self._steps.advance(held, images, created)
                moved += after is not held
                self._note(held.shard, after)
                await asyncio.sleep(0)
            if not moved:
                await self._pause()

    async def _pause(self) -> None:
        try:
            async with asyncio.timeout(self._teacher.batch_poll_s if self._shards else None):
                await self._news.wait()
        except TimeoutError:
            return

    def _note(self, shard: Shard, after: Held | None) -> None:
        """A shard that has ended gives its answers, and the rest is looked for anew."""
        if after is not None:
            self._shards[shard.id] = after
            return
        del self._shards[shard.id]
        self._journal.refresh()
        for id in shard.ids:
            if id in self._wanted and not self._deliver(id):
                self._unplanned.append(id)

    # Images, in their order.

    def _look_up(self) -> int:
        """Takes images from the queue: as many as the money that is left will pay for, once nothing is in flight."""
        left_usd = self._budget.left_usd
        if not self._queue or (left_usd is not None and self._wanted):
            return 0
        self._journal.refresh()
        most = None if left_usd is None else self._affordable(left_usd)
        looked, new = 0, 0
        while self._queue:
            ticket, image = self._queue[0]
            if image is not None:
                if not self._budget.admits(image.position):
                    ticket.left_out.add(image.position)
                elif self._expect(ticket, image, first_only=most is not None and new >= most):
                    new += 1
                elif most is not None and new >= most and not self._is_known(image):
                    break
            else:
                self._end_of(ticket)
            self._queue.popleft()
            looked += 1
        return looked

    def _is_known(self, image: TeacherImage) -> bool:
        return all(self._journal.knows(image.sha256, vote) for vote in range(self._teacher.votes))

    def _expect(self, ticket: LiveTicket, image: TeacherImage, *, first_only: bool) -> bool:
        """Whether something new is to be asked for this image; with `first_only` nothing new is."""
        votes = range(self._teacher.votes)
        known = [vote for vote in votes if self._journal.knows(image.sha256, vote)]
        ids = [custom_id(image.sha256, vote) for vote in votes if vote not in known]
        new = [id for id in ids if id not in self._wanted]
        if new and first_only:
            return False
        for vote in known:
            outcome = self._journal.find(image.sha256, vote)
            assert outcome is not None
            self.stats.cached += 1
            self._pay(image, outcome)
        for id in ids:
            ticket.expect()
            self._wanted.setdefault(id, _Wanted(image)).tickets.append(ticket)
        self._unplanned += new
        self.stats.in_flight += len(new)
        return bool(new)

    def _end_of(self, ticket: LiveTicket) -> None:
        ticket.arrived()
        self._open = {one for one in self._open if not one.done}

    def _affordable(self, left_usd: float) -> int:
        """Images."""
        if not self._paid:
            return FIRST_IMAGES
        mean_usd = sum(self._paid.values()) / len(self._paid) * self._teacher.votes
        return max(1, int(left_usd / mean_usd)) if mean_usd > 0 else FIRST_IMAGES

    # Shards.

    def _plan(self) -> int:
        """Finds or makes the shards of what is in none."""
        if not self._unplanned:
            return 0
        if self._steps is None:
            self._journal.describe(self._question.description())
            self._steps = self._make_steps()
        book, ids = self._steps.book, self._unplanned
        for held in book.open():
            known = sum(id in self._wanted for id in held.shard.ids)
            if held.shard.status == "planned" and 0 < known < len(held.shard.ids):
                book.give_up(held)  # of an earlier run that asked more: its file cannot be made
        book.plan(self._new_shards)
        for held in book.open():
            if any(id in self._wanted for id in held.shard.ids):
                self._shards.setdefault(held.shard.id, held)
        self._journal.refresh()
        ours = {id for held in self._shards.values() for id in held.shard.ids}
        # In neither: another process' shard had it when we planned, and has ended since. It is looked for anew.
        self._unplanned = [id for id in ids if not self._deliver(id) and id not in ours]
        return len(ids)

    def _new_shards(self, open_shards: Sequence[Shard]) -> list[dict[str, Any]]:
        """Answers are journalled before their shard ends, so the journal is read after the open shards."""
        assert self._steps is not None
        taken = {id for shard in open_shards for id in shard.ids}
        self._journal.refresh()
        images = {id: self._wanted[id].image for id in self._unplanned}
        return self._steps.plans([id for id in images if id not in taken and not self._journal.knows(*vote_of(id))], images)

    def _deliver(self, id: str) -> bool:
        """Whether an answer has come, for all who wait for it."""
        if id not in self._wanted:
            return True
        outcome = self._journal.find(*vote_of(id))
        if outcome is None:
            return False
        wanted = self._wanted.pop(id)
        self.stats.outcomes += 1
        self.stats.in_flight -= 1
        self.stats.calls += outcome.calls
        self.stats.repairs += outcome.calls > 1
        self._pay(wanted.image, outcome)
        for ticket in wanted.tickets:
            ticket.arrived()
        return True

    def _pay(self, image: TeacherImage, outcome: Outcome) -> None:
        id = custom_id(outcome.image, outcome.vote)
        if self._teacher.price is None or id in self._paid:
            return
        self._paid[id] = cost_usd(outcome.usage, self._teacher.price)
        self.stats.spent_usd += self._paid[id]
        self._budget.pay(image.position, self._paid[id])
