from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from fake_ledger import Quota as Bucket

from pocketvlm.teacher.limiter import Limiter
from pocketvlm.teacher.rate_headers import duration_s, quota_of, retry_after_s

NOW = datetime(2026, 11, 28, 12, 0, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("6m0s", 360), ("1.5s", 1.5), ("120ms", 0.12), ("1h2m3s", 3723), ("1d", 86400), ("20", 20), ("0s", 0), ("", None),
     ("soon", None), ("6m0", None), ("-1s", None), ("1e9", None), ("nan", None), (None, None)],
)  # fmt: skip
def test_durations_are_read_as_servers_write_them(text: str | None, seconds: float | None) -> None:
    assert duration_s(text) == seconds


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after-ms": "1500", "retry-after": "9"}, 1.5),
        ({"retry-after": "7"}, 7),
        ({"retry-after": format_datetime(NOW + timedelta(seconds=30), usegmt=True)}, 30),
        ({"retry-after": format_datetime(NOW - timedelta(seconds=30), usegmt=True)}, 0),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "-5"}, None),
        ({}, None),
    ],
)
def test_retry_after_is_milliseconds_seconds_or_a_date(headers: dict[str, str], seconds: float | None) -> None:
    assert retry_after_s(headers, NOW) == seconds


def test_a_quota_without_a_limit_is_none() -> None:
    assert quota_of({"x-ratelimit-remaining-requests": "3"}, "requests") is None
    assert quota_of({"x-ratelimit-limit-requests": "0"}, "requests") is None
    quota = quota_of({"x-ratelimit-limit-tokens": "90", "x-ratelimit-remaining-tokens": "-1"}, "tokens")
    assert quota is not None
    assert (quota.limit, quota.remaining, quota.reset_s) == (90, None, None)


class Server:
    """Answers after a while, within the quota of a bucket, and says so; counts what it had to refuse."""

    def __init__(self, rpm: int | None = None, tpm: int | None = None, *, burst_s: float = 1.0, latency_s: float = 0.05,
                 charged: float = 10, says: bool = True) -> None:  # fmt: skip
        self.requests, self.tokens = Bucket(rpm, burst_s), Bucket(tpm, burst_s)
        self.latency_s, self.charged, self.says = latency_s, charged, says
        self.dice = random.Random(1)
        self.taken: list[float] = []
        self.refused = self.at_once = self.most_at_once = 0

    def spend(self, share: float) -> None:
        """What somebody else with the same key has used of the bucket."""
        for bucket in (self.requests, self.tokens):
            if bucket.per_minute:
                bucket.take(share * bucket._room)

    async def answer(self) -> tuple[int, dict[str, str]]:
        wait_s = max(self.requests.wait_s(1), self.tokens.wait_s(self.charged))
        if wait_s > 0:
            self.refused += 1
            return 429, {"retry-after-ms": str(int(wait_s * 1000) + 1)} | self._headers()
        self.requests.take(1)
        self.tokens.take(self.charged)
        headers = self._headers()
        self.taken.append(time.monotonic())
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        await asyncio.sleep(self.latency_s * self.dice.uniform(0.7, 1.3))
        self.at_once -= 1
        return 200, headers

    def _headers(self) -> dict[str, str]:
        return self.requests.headers("requests") | self.tokens.headers("tokens") if self.says else {}

    def used(self, per_minute: float, amount: float, from_s: float) -> float:
        """Share of a quota that was used from `from_s` after the first call to the last one."""
        start = self.taken[0] + from_s
        later = [at for at in self.taken if at > start]
        return len(later) * amount / ((later[-1] - start) * per_minute / 60)


async def ask(limiter: Limiter, server: Server, tokens: int = 10) -> None:
    while True:
        call = await limiter.start()
        status, headers = await server.answer()
        if status == 200:
            limiter.succeeded(call, headers, tokens)
        else:
            limiter.limited(call, headers)
        limiter.release(call)
        if status == 200:
            return


def run(limiter: Callable[[], Limiter], server: Server, calls: int, tokens: int = 10) -> None:
    """All calls, through a limiter that is made when the first one is."""

    async def all_of_them() -> None:
        one = limiter()
        await asyncio.gather(*(ask(one, server, tokens) for _ in range(calls)))
        assert one.in_flight == 0

    asyncio.run(all_of_them())


def most_used(attempt: Callable[[], tuple[Server, float]]) -> float:
    """The largest share of a quota that an attempt used; never more than all of it, and no call is refused.

    Three attempts at most: where the machine is busy with something else, calls come late.
    """
    best = 0.0
    for _ in range(3):
        server, used = attempt()
        assert server.refused == 0 and used <= 1.0
        best = max(best, used)
        if best >= 0.95:
            break
    return best


def test_a_quota_of_requests_that_the_server_tells_is_used_and_never_exceeded() -> None:
    def attempt() -> tuple[Server, float]:
        server = Server(rpm=2400)
        run(lambda: Limiter(64, None, None, 10), server, 160)
        return server, server.used(2400, 1, 0.5)

    assert most_used(attempt) >= 0.95


def test_a_quota_of_tokens_that_the_server_tells_is_used_and_never_exceeded() -> None:
    def attempt() -> tuple[Server, float]:
        server = Server(rpm=100_000, tpm=2_400_000, charged=1000)
        run(lambda: Limiter(64, None, None, 3000), server, 160, tokens=1000)
        return server, server.used(2_400_000, 1000, 0.5)

    assert most_used(attempt) >= 0.95


def test_a_quota_of_the_settings_is_kept_where_the_server_is_silent() -> None:
    def attempt() -> tuple[Server, float]:
        server = Server(rpm=2400, says=False)
        run(lambda: Limiter(64, 2400, None, 10), server, 120)
        return server, server.used(2400, 1, 0.5)

    assert most_used(attempt) >= 0.95


def test_the_smaller_quota_counts() -> None:
    server = Server(rpm=60_000)
    run(lambda: Limiter(64, 1800, None, 10), server, 60)
    assert server.used(1800, 1, 0.5) <= 1.0


def test_what_others_have_used_is_waited_for() -> None:
    """The bucket is empty at the start; the first headers say so, and calls in flight are not in them yet."""
    server = Server(rpm=1200, burst_s=2)
    server.spend(0.9)
    run(lambda: Limiter(64, None, None, 10), server, 60)
    assert server.refused <= 8  # of the first calls, which know nothing yet


def test_a_server_that_counts_more_tokens_than_it_bills_is_followed() -> None:
    """Many count the longest answer that was allowed."""
    server = Server(tpm=1_200_000, charged=1000, burst_s=2)
    run(lambda: Limiter(16, None, None, 500), server, 150, tokens=500)
    assert server.refused <= 8


def test_calls_at_once_grow_to_what_is_allowed_and_no_further() -> None:
    server = Server(latency_s=0.05)
    run(lambda: Limiter(24, None, None, 10), server, 300)
    assert server.most_at_once == 24


def test_calls_at_once_begin_small() -> None:
    server = Server(latency_s=60)

    async def peek() -> None:
        limiter = Limiter(64, None, None, 10)
        tasks = [asyncio.create_task(ask(limiter, server)) for _ in range(40)]
        await asyncio.sleep(0.1)
        assert server.at_once == 8
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    asyncio.run(peek())


def test_429_shrinks_what_is_at_once_and_success_lets_it_grow_again() -> None:
    async def at_once(limiter: Limiter) -> int:
        tasks = [asyncio.create_task(limiter.start()) for _ in range(100)]
        await asyncio.sleep(0.01)
        started = [task.result() for task in tasks if task.done()]
        for task in tasks:
            task.cancel()
        for call in started:
            limiter.release(call)
        return len(started)

    async def scenario() -> list[int]:
        limiter = Limiter(8, None, None, 10)
        counts = [await at_once(limiter)]
        for _ in range(5):  # all at once, as the calls in flight get them: counts once
            call = await limiter.start()
            limiter.limited(call, {})
            limiter.release(call)
        counts.append(await at_once(limiter))
        for _ in range(8):
            call = await limiter.start()
            limiter.succeeded(call, {}, 10)
            limiter.release(call)
        return [*counts, await at_once(limiter)]

    assert asyncio.run(scenario()) == [8, 5, 8]


def test_retry_after_stops_all_calls_and_its_time_does_not_count() -> None:
    async def scenario() -> tuple[float, float]:
        limiter = Limiter(8, None, None, 10)
        call = await limiter.start()
        began, active = time.monotonic(), limiter.active_s()
        limiter.limited(call, {"retry-after": "0.3"})
        limiter.release(call)
        limiter.release(await limiter.start())
        return time.monotonic() - began, limiter.active_s() - active

    waited_s, active_s = asyncio.run(scenario())
    assert waited_s >= 0.3
    assert active_s == pytest.approx(waited_s - 0.3, abs=0.1)


def test_a_429_beside_plenty_of_quota_stops_nobody_else() -> None:
    async def scenario() -> float:
        limiter = Limiter(8, None, None, 10)
        call = await limiter.start()
        plenty = {"x-ratelimit-limit-requests": "60000", "x-ratelimit-remaining-requests": "59999"}
        limiter.limited(call, {"retry-after": "5", **plenty})
        limiter.release(call)
        began = time.monotonic()
        limiter.release(await limiter.start())
        return time.monotonic() - began

    assert asyncio.run(scenario()) < 4


def test_a_window_that_ends_is_waited_for() -> None:
    """Not all servers fill evenly: some give the whole quota back when the minute is over."""

    async def scenario() -> tuple[float, float]:
        limiter = Limiter(8, None, None, 10)
        began = time.monotonic()
        for number in range(6):
            call = await limiter.start()
            reset_s = 1.6 - (time.monotonic() - began)
            limiter.succeeded(call, {"x-ratelimit-limit-requests": "60000", "x-ratelimit-remaining-requests": str(5 - number),
                                     "x-ratelimit-reset-requests": f"{reset_s * 1000:.0f}ms"}, 10)  # fmt: skip
            limiter.release(call)
            await asyncio.sleep(0.02)
        before = time.monotonic() - began
        limiter.release(await limiter.start())
        return before, time.monotonic() - began

    before_s, after_s = asyncio.run(scenario())
    assert before_s < 1.5
    assert after_s >= 1.55


def test_a_caller_that_gives_up_leaves_no_trace() -> None:
    async def scenario() -> None:
        limiter = Limiter(1, None, None, 10)
        call = await limiter.start()
        waiting = [asyncio.create_task(limiter.start()) for _ in range(3)]
        await asyncio.sleep(0)
        waiting[0].cancel()
        limiter.release(call)
        limiter.release(call)
        second = await asyncio.wait_for(waiting[1], 1)
        assert limiter.in_flight == 1
        limiter.release(second)
        limiter.release(await asyncio.wait_for(waiting[2], 1))
        assert limiter.in_flight == 0

    asyncio.run(scenario())
