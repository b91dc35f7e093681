"""When the next call may start: quota, pauses that the server asked for, and how much at once has proved to work.

Calls are paced evenly at `USED` of the quota, since servers enforce a quota of a minute over shorter windows too. What a server
says of its quota was written before some of the calls now in flight reached it, so those are taken off it.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import takewhile

from pocketvlm.teacher.rate_headers import Quota, quota_of, retry_after_s

USED = 0.98
"""Share of a quota that is used: room for clocks and networks that run unevenly."""
CREDIT_S = 0.2
"""Time not used that may be made up for at once; more would be a burst."""
START_AT_ONCE = 8
SHRINK_TO = 0.7
SHRINK_EVERY_S = 1.0
"""The calls in flight at a 429 are all likely to get one; they count once."""
LEARN = 0.1
"""Weight of the newest value in a running mean."""
RECENT = 4096
"""Calls whose cost is remembered, to be taken off what the server says remains."""


@dataclass
class Call:
    """A call that may start now."""

    number: int
    started_s: float
    tokens: float
    """What it is thought to cost."""
    released: bool = False


class Pace:
    """One quantity (requests or tokens): how long until some of it may be used."""

    def __init__(self, setting: int | None, now: float) -> None:
        self._setting = setting
        self._rate = _rate(setting)
        self._free_at = now - CREDIT_S
        """When all that was started is paid off at this rate."""
        self._blocked_until = 0.0
        self._said: Quota | None = None
        self._said_at = 0.0
        self._window_like = 0.0
        """Above 0: what the server says fits a window that ends, not a bucket that fills evenly."""

    def wait_s(self, now: float) -> float:
        """0: now."""
        paced = self._free_at - now if self._rate else 0.0
        return max(0.0, paced, self._blocked_until - now)

    def use(self, amount: float, now: float) -> None:
        if self._rate:
            self._free_at = max(self._free_at, now - CREDIT_S) + amount / self._rate

    def correct(self, amount: float) -> None:
        """A call turned out to have cost so much more (or less) than was thought."""
        if self._rate:
            self._free_at += amount / self._rate

    def hear(self, said: Quota, started_s: float, later: float, next_amount: float, now: float) -> None:
        """What the server said with a call that started at `started_s`; `later` is used by calls that started after it."""
        self._rate = _rate(min(limit for limit in (self._setting, said.limit) if limit))
        if said.remaining is None:
            return
        self._compare(said, started_s)
        self._said, self._said_at = said, started_s
        if self._window_like > 0 and said.reset_s is not None:
            enough = said.remaining - later >= next_amount
            self._blocked_until = 0.0 if enough else started_s + said.reset_s
            return
        missing = next_amount - (said.remaining - later + (now - started_s) * said.limit / 60)
        # A call that costs more than the whole bucket is let in when that is full.
        self._blocked_until = now + min(missing, said.limit) * 60 / said.limit if missing > 0 else 0.0

    def charge(self, said: Quota, started_s: float, calls: int) -> float | None:
        """What the server has taken for each of `calls` since it last spoke; None where that cannot be told."""
        before = self._said
        if before is None or before.remaining is None or said.remaining is None or self._window_like > 0:
            return None
        return (before.remaining - said.remaining + (started_s - self._said_at) * said.limit / 60) / calls

    def _compare(self, said: Quota, started_s: float) -> None:
        before = self._said
        if before is None or before.remaining is None or before.reset_s is None or said.reset_s is None or said.remaining is None:
            return
        bucket = before.reset_s + (before.remaining - said.remaining) * 60 / said.limit
        window = max(0.0, before.reset_s - (started_s - self._said_at))
        closer = min(1.0, abs(said.reset_s - bucket)) - min(1.0, abs(said.reset_s - window))
        self._window_like += LEARN * (closer - self._window_like)


class Limiter:
    """One for each client; used on one event loop."""

    def __init__(self, in_flight: int, requests_per_minute: int | None, tokens_per_minute: int | None, tokens: float) -> None:
        """`tokens` is a guess of what a call costs, until some have answered."""
        now = time.monotonic()
        self._requests, self._tokens = Pace(requests_per_minute, now), Pace(tokens_per_minute, now)
        self._cap = in_flight
        self._allowed = float(min(START_AT_ONCE, in_flight))
        self._billed, self._known = tokens, False
        """Tokens of a call by the bills."""
        self._charged = 0.0
        """The same by what the server takes off the quota: many count the longest answer that was allowed."""
        self._paused_until = 0.0
        self._paused_s = 0.0
        """Of all pauses that began."""
        self._shrunk_at = 0.0
        self._count = self._heard = 0
        self._recent: deque[tuple[int, float]] = deque(maxlen=RECENT)
        self._queue = asyncio.Lock()
        self._changed = asyncio.Event()
        self.in_flight = 0

    async def start(self) -> Call:
        """Waits until a call may start; first come, first served. `release` it."""
        async with self._queue:
            while (wait_s := self._wait_s()) != 0:
                self._changed.clear()
                try:
                    async with asyncio.timeout(wait_s):
                        await self._changed.wait()
                except TimeoutError:
                    continue
            return self._take(time.monotonic())

    def release(self, call: Call) -> None:
        """Its place is free."""
        if not call.released:
            call.released = True
            self.in_flight -= 1
            self._changed.set()

    def succeeded(self, call: Call, headers: Mapping[str, str], tokens: int) -> None:
        """An answer came; `tokens` are those that it was billed for."""
        self._allowed = min(self._allowed + 1, self._cap)
        if tokens:
            self._billed += (LEARN if self._known else 1.0) * (tokens - self._billed)
            self._known = True
            self._tokens.correct(max(tokens, self._charged) - call.tokens)
        self._hear(call, headers)

    def limited(self, call: Call, headers: Mapping[str, str]) -> None:
        """429 or 503: fewer at once; and nobody calls before the time that the server gave, unless it says that quota remains."""
        now = time.monotonic()
        if now - self._shrunk_at >= SHRINK_EVERY_S:
            self._shrunk_at = now
            self._allowed = max(1.0, self._allowed * SHRINK_TO)
        self._hear(call, headers)
        wait_s = retry_after_s(headers)
        if wait_s is not None and not self._has_quota(headers):
            until = now + wait_s
            self._paused_s += max(0.0, until - max(now, self._paused_until))
            self._paused_until = max(self._paused_until, until)

    def failed(self, call: Call, headers: Mapping[str, str]) -> None:
        """Any other error."""
        self._hear(call, headers)

    def active_s(self) -> float:
        """A clock that stands still while the server wants to be left alone."""
        now = time.monotonic()
        return now - self._paused_s + max(0.0, self._paused_until - now)

    def wait_s(self) -> float:
        """How long nothing may start, however few calls are in flight."""
        now = time.monotonic()
        return max(0.0, self._requests.wait_s(now), self._tokens.wait_s(now), self._paused_until - now)

    def _wait_s(self) -> float | None:
        """0: now; None: until something changes."""
        return None if self.in_flight >= int(self._allowed) else self.wait_s()

    def _take(self, now: float) -> Call:
        self._count += 1
        self.in_flight += 1
        call = Call(self._count, now, self._tokens_a_call())
        self._requests.use(1, now)
        self._tokens.use(call.tokens, now)
        self._recent.append((call.number, call.tokens))
        return call

    def _hear(self, call: Call, headers: Mapping[str, str]) -> None:
        if call.number <= self._heard:
            return  # an older call that took longer: its news are old
        calls, self._heard = call.number - self._heard, call.number
        now = time.monotonic()
        if requests := quota_of(headers, "requests"):
            self._requests.hear(requests, call.started_s, self._count - call.number, 1, now)
        if tokens := quota_of(headers, "tokens"):
            charge = self._tokens.charge(tokens, call.started_s, calls)
            if charge is not None:
                self._charged += LEARN * (max(0.0, charge) - self._charged)
            later = sum(cost for _, cost in takewhile(lambda one: one[0] > call.number, reversed(self._recent)))
            self._tokens.hear(tokens, call.started_s, later, self._tokens_a_call(), now)
        self._changed.set()

    def _has_quota(self, headers: Mapping[str, str]) -> bool:
        known = [
            (quota.remaining, least)
            for what, least in (("requests", 1.0), ("tokens", self._tokens_a_call()))
            if (quota := quota_of(headers, what)) and quota.remaining is not None
        ]
        return bool(known) and all(remaining >= least for remaining, least in known)

    def _tokens_a_call(self) -> float:
        return max(self._billed, self._charged)


def _rate(per_minute: float | None) -> float:
    """A second; 0: as fast as you can."""
    return USED * per_minute / 60 if per_minute else 0.0
