"""A teacher that is asked call by call, many at once. The calls run on an event loop in a thread of their own.

Images are taken in the order in which they were given, and each new one waits for a place among those in flight, then for quota,
and then the budget says whether it is asked. A place is freed once the outcome is in the journal: killed at any moment, what was
paid for and is lost are the calls in flight.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING

from pydantic import SecretStr

from pocketvlm.errors import UserError
from pocketvlm.progress import Progress
from pocketvlm.run_file import Teacher
from pocketvlm.teacher.answers import Outcome, Reply, TeacherImage
from pocketvlm.teacher.budget import Budget, cost_usd
from pocketvlm.teacher.completion import Asked
from pocketvlm.teacher.endpoint import Endpoint
from pocketvlm.teacher.journal import Journal
from pocketvlm.teacher.limiter import Call, Limiter
from pocketvlm.teacher.question import TeacherQuestion
from pocketvlm.teacher.stats import Stats

if TYPE_CHECKING:
    from pocketvlm.teacher.calls import Caller, Item

IMAGE_TOKENS = 1000
"""A guess, until the first bill."""
END_S = 10.0
"""Time for connections to close."""

AnswerKey = tuple[str, int]
"""Sha256 of an image, vote."""


class LiveTicket:
    """Images that were given to a `LiveClient`."""

    def __init__(self, images: Sequence[TeacherImage], journal: Journal, votes: int) -> None:
        self.images = list(images)
        self.left_out: set[int] = set()
        """Positions that the budget did not admit."""
        self._journal, self._votes = journal, votes
        self._pending = 1
        """Outcomes that are not there yet, and one until all images were looked at."""
        self._done: Future[None] = Future()

    def wait(self) -> list[Reply]:
        self._done.result()
        return [Reply(image, [] if image.position in self.left_out else self._outcomes(image)) for image in self.images]

    def _outcomes(self, image: TeacherImage) -> list[Outcome]:
        found = [self._journal.find(image.sha256, vote) for vote in range(self._votes)]
        assert all(found), "a ticket is done when the journal has all of its outcomes"
        return [outcome for outcome in found if outcome is not None]

    def done_in(self, seconds: float) -> bool:
        return bool(concurrent.futures.wait([self._done], seconds).done)

    @property
    def done(self) -> bool:
        return self._done.done()

    def expect(self) -> None:
        self._pending += 1

    def arrived(self) -> None:
        self._pending -= 1
        if self._pending == 0 and not self._done.done():
            self._done.set_result(None)

    def fail(self, error: BaseException) -> None:
        if not self._done.done():
            self._done.set_exception(error)


class LiveClient:
    """One teacher by live calls; a context manager. Left with an error, it drops calls in flight, otherwise it waits for them."""

    def __init__(
        self, teacher: Teacher, question: TeacherQuestion, journal: Journal, *, key: SecretStr | None, budget: Budget,
        progress: Progress,
    ) -> None:  # fmt: skip
        """Asks nothing yet. Raises CredentialsError when OpenAI's endpoint is meant and there is no key."""
        self.stats = Stats()
        self._teacher, self._question, self._journal, self._budget = teacher, question, journal, budget
        self._progress = progress
        self._endpoint = Endpoint(teacher, key)
        guess = (len(question.system) + len(question.user)) // 4 + IMAGE_TOKENS + teacher.max_answer_tokens // 2
        self._limiter = Limiter(teacher.in_flight, teacher.requests_per_minute, teacher.tokens_per_minute, guess)
        self._places = asyncio.Semaphore(teacher.in_flight)
        self._caller: Caller | None = None
        self._tickets: asyncio.Queue[LiveTicket] = asyncio.Queue()
        self._open: set[LiveTicket] = set()
        self._flying: dict[AnswerKey, list[LiveTicket]] = {}
        self._items: dict[asyncio.Task[None], Item | None] = {}
        self._paid: set[bytes] = set()
        """Beginnings of digests of what was paid, so that equal images are paid once."""
        self._fatal: BaseException | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._pump: asyncio.Task[None] | None = None
        self._thread: threading.Thread | None = None
        self._closed = False

    def __enter__(self) -> LiveClient:
        return self

    def __exit__(self, *error: object) -> None:
        if self._loop is not None and error[0] is None:
            # Whoever has enough leaves with calls in flight: they are paid for, so their answers are waited for and kept.
            asyncio.run_coroutine_threadsafe(self._drain(), self._loop).result()
        self.close()

    def ask(self, images: Sequence[TeacherImage]) -> LiveTicket:
        assert not self._closed, "a closed client is asked nothing"
        ticket = LiveTicket(images, self._journal, self._teacher.votes)
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            name = f"teacher {self._teacher.model}"
            self._thread = threading.Thread(target=self._run, args=(self._loop,), name=name, daemon=True)
            self._thread.start()
        self._loop.call_soon_threadsafe(self._take, ticket)
        return ticket

    def wait_s(self) -> float:
        return self._limiter.wait_s()

    def close(self) -> None:
        """Ends at once: what is in flight is dropped, what was answered is journalled."""
        if self._closed:
            return
        self._closed = True
        if self._loop is not None and self._thread is not None:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(END_S)
        self._journal.close()

    # On the event loop.

    def _run(self, loop: asyncio.AbstractEventLoop) -> None:
        asyncio.set_event_loop(loop)
        self._pump = loop.create_task(self._take_tickets())
        self._pump.add_done_callback(self._ended)
        try:
            loop.run_forever()
            loop.run_until_complete(self._end())
            loop.run_until_complete(loop.shutdown_asyncgens())
        finally:
            loop.close()

    async def _end(self) -> None:
        self._fatal = self._fatal or RuntimeError("the client was closed")
        tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._fail_tickets()
        if self._caller is not None:
            await self._caller.close()

    def _take(self, ticket: LiveTicket) -> None:
        self._open.add(ticket)
        self._tickets.put_nowait(ticket)
        if self._fatal is not None:
            self._fail_tickets()

    async def _take_tickets(self) -> None:
        while True:
            ticket = await self._tickets.get()
            await asyncio.to_thread(self._journal.refresh)
            for image in ticket.images:
                await self._take_image(ticket, image)
            ticket.arrived()
            self._open = {one for one in self._open if not one.done}

    async def _take_image(self, ticket: LiveTicket, image: TeacherImage) -> None:
        votes = range(self._teacher.votes)
        lacking = [vote for vote in votes if not self._journal.knows(image.sha256, vote)]
        new = [vote for vote in lacking if (image.sha256, vote) not in self._flying]
        call = await self._place() if new else None
        if not self._budget.admits(image.position):
            ticket.left_out.add(image.position)
            if call is not None:
                self._free(call)
            return
        for vote in votes:
            if vote in new:
                call = call or await self._place()
                self._start(image, vote, call)
                call = None
            if (waiting := self._flying.get((image.sha256, vote))) is not None:
                ticket.expect()
                waiting.append(ticket)
            else:
                self._reuse(image, vote)

    def _reuse(self, image: TeacherImage, vote: int) -> None:
        outcome = self._journal.find(image.sha256, vote)
        assert outcome is not None
        self.stats.cached += 1
        self._pay(image, outcome)

    async def _place(self) -> Call:
        """A place among those in flight, and a call that may start."""
        if self._caller is None:
            self._caller = await asyncio.to_thread(self._connect)
        await self._places.acquire()
        try:
            return await self._limiter.start()
        except BaseException:
            self._places.release()
            raise

    def _connect(self) -> Caller:
        try:
            from pocketvlm.teacher.calls import Caller  # loads the openai package, seconds that a rerun does not need
        except ImportError as error:
            raise UserError(f"run.labeller.teacher needs {error.name}; install pocketvlm[teacher]") from error
        self._journal.describe(self._question.description())
        return Caller(self._endpoint, self._question, self._limiter, self.stats, self._progress)

    def _free(self, call: Call | None) -> None:
        if call is not None:
            self._limiter.release(call)
        self._places.release()

    def _start(self, image: TeacherImage, vote: int, call: Call) -> None:
        self._flying[image.sha256, vote] = []
        self.stats.in_flight += 1
        task = asyncio.create_task(self._fly(image, vote, call))
        self._items[task] = None
        task.add_done_callback(self._ended)

    async def _fly(self, image: TeacherImage, vote: int, call: Call) -> None:
        """One answer, from its first call until it is in the journal."""
        from pocketvlm.teacher.calls import Item

        task = asyncio.current_task()
        assert task is not None and self._caller is not None
        held: Call | None = call
        try:
            item = Item(Asked(image.sha256, vote), await asyncio.to_thread(image.read), call)
            self._items[task] = item
            try:
                outcome = await self._caller.outcome(item)
            finally:
                held = item.call
            self._pay(image, outcome)
            await asyncio.wrap_future(self._journal.submit(outcome))
            self.stats.outcomes += 1
        finally:
            self.stats.in_flight -= 1
            self._free(held)
        for ticket in self._flying.pop((image.sha256, vote)):
            ticket.arrived()

    def _pay(self, image: TeacherImage, outcome: Outcome) -> None:
        """Once for each outcome, whether it is new or was journalled, so that a rerun counts the same."""
        digest = bytes.fromhex(outcome.image)[:12] + bytes([outcome.vote])
        if self._teacher.price is None or digest in self._paid:
            return
        self._paid.add(digest)
        usd = cost_usd(outcome.usage, self._teacher.price)
        self.stats.spent_usd += usd
        self._budget.pay(image.position, usd)

    def _ended(self, task: asyncio.Task[None]) -> None:
        """The first error ends all: nothing new starts, calls that may be paid for come to their end and are journalled."""
        self._items.pop(task, None)
        if not task.cancelled() and (error := task.exception()) is not None and self._fatal is None:
            self._stop(error)
        if self._fatal is not None and not self._items:
            self._fail_tickets()

    def _stop(self, reason: BaseException) -> None:
        self._fatal = reason
        if self._caller is not None:
            self._caller.stopping = True
        if self._pump is not None:
            self._pump.cancel()
        for task, item in self._items.items():
            if item is None or not item.calling:
                task.cancel()

    async def _drain(self) -> None:
        """Returns when what is in flight is journalled; nothing new starts."""
        if self._fatal is None:
            self._stop(RuntimeError("the client was closed"))
        await asyncio.gather(*self._items, return_exceptions=True)

    def _fail_tickets(self) -> None:
        assert self._fatal is not None
        for ticket in self._open:
            ticket.fail(self._fatal)
        self._open.clear()
