"""What the fake teacher has billed, and the quota that it enforces."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Ledger:
    """Counts; read from the test's thread while the server writes."""

    input_usd: float = 2.5
    """For a million tokens; so are the next two."""
    cached_usd: float = 1.25
    output_usd: float = 10.0
    batch_share: float = 0.5
    images: Counter[str] = field(default_factory=Counter)
    """Sha256 of an image -> billed calls, live and batched."""
    asked: Counter[tuple[str, int | None, int]] = field(default_factory=Counter)
    """(image, seed, number of messages) -> billed calls."""
    custom_ids: Counter[str] = field(default_factory=Counter)
    """Of lines of batches -> billed answers."""
    statuses: Counter[int] = field(default_factory=Counter)
    """HTTP status of answers to chat completions; 0: cut."""
    requests: Counter[str] = field(default_factory=Counter)
    """`POST /v1/files` and the like -> how often."""
    input_tokens: int = 0
    output_tokens: int = 0
    usd: float = 0.0
    at_once: int = 0
    most_at_once: int = 0
    by_second: Counter[int] = field(default_factory=Counter)
    """Second since the start -> calls of chat completions that were let in."""
    started: float = field(default_factory=time.monotonic)

    @property
    def billed(self) -> int:
        return sum(self.images.values())

    def arrive(self) -> None:
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)

    def leave(self) -> None:
        self.at_once -= 1

    def bill(self, key: tuple[str, int | None, int], usage: dict[str, Any], custom_id: str | None = None) -> None:
        self.images[key[0]] += 1
        self.asked[key] += 1
        cached = usage["prompt_tokens_details"]["cached_tokens"]
        fresh = usage["prompt_tokens"] - cached
        usd = (fresh * self.input_usd + cached * self.cached_usd + usage["completion_tokens"] * self.output_usd) / 1e6
        if custom_id is not None:
            self.custom_ids[custom_id] += 1
            usd *= self.batch_share
        self.input_tokens += usage["prompt_tokens"]
        self.output_tokens += usage["completion_tokens"]
        self.usd += usd

    def json(self, *, whole: bool = True) -> dict[str, Any]:
        """`whole`: with the counters by image and by custom_id."""
        seconds = {str(second): count for second, count in sorted(self.by_second.items())}
        brief = {"billed": self.billed, "usd": self.usd, "input_tokens": self.input_tokens, "output_tokens": self.output_tokens,
                 "most_at_once": self.most_at_once, "statuses": {str(key): count for key, count in self.statuses.items()},
                 "requests": dict(self.requests), "by_second": seconds, "different_images": len(self.images),
                 "billed_twice": sum(1 for count in self.asked.values() if count > 1)}  # fmt: skip
        asked = [[*key, count] for key, count in self.asked.items()]
        return {**brief, "images": dict(self.images), "custom_ids": dict(self.custom_ids), "asked": asked} if whole else brief


class Quota:
    """Requests or tokens a minute, as a bucket that fills evenly and holds what comes in `burst_s`: short windows count too."""

    def __init__(self, per_minute: int | None, burst_s: float) -> None:
        self.per_minute = per_minute
        self._burst_s = burst_s
        self._filled_at = time.monotonic()
        self._level = self._room = 0.0
        self.resize(per_minute, burst_s)

    def resize(self, per_minute: int | None, burst_s: float) -> None:
        """A new limit; the bucket is full."""
        self.per_minute, self._burst_s = per_minute, burst_s
        self._level = self._room = 0.0 if per_minute is None else max(1.0, per_minute * burst_s / 60)

    def wait_s(self, amount: float) -> float:
        """Seconds until `amount` can be taken; 0: now. More than the bucket holds is taken from a full one."""
        if self.per_minute is None:
            return 0.0
        self._fill()
        return max(0.0, (min(amount, self._room) - self._level) * 60 / self.per_minute)

    def take(self, amount: float) -> None:
        if self.per_minute is not None:
            self._fill()
            self._level -= amount

    def drop(self, amount: float) -> None:
        """What a refused request costs: never below nothing."""
        if self.per_minute is not None:
            self._fill()
            self._level = min(self._level, max(0.0, self._level - amount))

    def headers(self, what: str) -> dict[str, str]:
        """`x-ratelimit-*`, the reset being when the bucket is full."""
        if self.per_minute is None:
            return {}
        self._fill()
        reset_s = (self._room - self._level) * 60 / self.per_minute
        return {f"x-ratelimit-limit-{what}": str(self.per_minute),
                f"x-ratelimit-remaining-{what}": str(max(0, int(self._level))),
                f"x-ratelimit-reset-{what}": go_duration(reset_s)}  # fmt: skip

    def _fill(self) -> None:
        assert self.per_minute is not None
        now = time.monotonic()
        self._level = min(self._room, self._level + (now - self._filled_at) * self.per_minute / 60)
        self._filled_at = now


def go_duration(seconds: float) -> str:
    """As Go writes it: `6m0s`, `1.2s`, `120ms`."""
    if seconds < 1:
        return f"{round(seconds * 1000)}ms"
    minutes, rest = divmod(round(seconds, 3), 60)
    text = f"{rest:.3f}".rstrip("0").rstrip(".")
    hours, minutes = divmod(int(minutes), 60)
    return f"{f'{hours}h' if hours else ''}{f'{minutes}m' if hours or minutes else ''}{text}s"
