"""The bad days of the fake teacher, by chance from a seed, by image, or one after the other."""

from __future__ import annotations

import random
import threading
from collections import Counter, deque
from dataclasses import dataclass, field
from typing import Any

TRANSPORT = ("rate_limit", "rate_limit_silent", "no_quota", "server_error", "bad_gateway", "unavailable", "slow", "cut_before",
             "cut_after")  # fmt: skip
"""What ends or delays a call. By chance, another try may fare better.

`rate_limit`: 429 with Retry-After; `rate_limit_silent`: without; `no_quota`: 429 insufficient_quota; `bad_gateway`: 502 in HTML;
`slow`: `slow_s` more; `cut_before`: the connection is cut and nothing billed; `cut_after`: billed, then cut within the answer.
"""
CONTENT = ("invalid_json", "refusal", "content_filter", "filtered_prompt", "length", "wrong_schema")
"""What a billed answer is instead of a valid one. By chance of the content: the same request meets the same.

A repair, which has more messages, is another request. `filtered_prompt`: 400, as Azure's filter says it; not billed.
"""
BATCH = ("expired", "invalid_file", "token_limit", "stuck")
"""What the next batches meet; see fake_batches.py."""


@dataclass
class Faults:
    """All may be changed while the server runs."""

    seed: int = 0
    rates: dict[str, float] = field(default_factory=dict)
    """Fault -> share of calls. `line_error` is a 500 within a batch."""
    images: dict[str, str] = field(default_factory=dict)
    """Sha256 of an image -> fault of all its calls."""
    next: deque[str] = field(default_factory=deque)
    """Faults of the next calls of chat completions; "ok" for none."""
    calls: dict[int, str] = field(default_factory=dict)
    """Number of a call, from 1 -> its fault."""
    batches: deque[str] = field(default_factory=deque)
    """Faults of the next batches; "ok" for none."""
    requests: dict[str, list[str]] = field(default_factory=dict)
    """`POST /v1/batches` and the like -> `unavailable`, `cut_before` or `cut_after` (when it is done) for the next of them."""
    slow_s: float = 1.0
    retry_after_s: float = 0.1
    forced: Counter[str] = field(default_factory=Counter)
    """How often each fault was met."""
    _tries: Counter[Any] = field(default_factory=Counter)
    _count: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def of_call(self, key: tuple[Any, ...]) -> tuple[str | None, str | None]:
        """The transport fault and the content fault of the next call with this key."""
        with self._lock:
            self._count += 1
            self._tries[key] += 1
            named = self.calls.get(self._count) or (self.next.popleft() if self.next else None) or self.images.get(key[0])
            if named:
                transport, content = (named if named in TRANSPORT else None), (named if named in CONTENT else None)
            else:
                transport = self._drawn(TRANSPORT, "transport", key, self._tries[key])
                content = self._drawn(CONTENT, "content", key)
            self.forced.update(name for name in (transport,) if name)
            return transport, content

    def of_line(self, key: tuple[Any, ...]) -> tuple[bool, str | None]:
        """Whether a batch's line fails, and the content fault of its answer."""
        with self._lock:
            self._tries["line", key] += 1
            named = self.images.get(key[0])
            failed = self._drawn(("line_error",), "line", key, self._tries["line", key]) is not None
            return failed or named == "line_error", named if named in CONTENT else self._drawn(CONTENT, "content", key)

    def change(self, new: dict[str, Any]) -> None:
        """Takes any of the public fields, as JSON has them."""
        for name, value in new.items():
            if name in ("next", "batches"):
                setattr(self, name, deque(value))
            elif name == "calls":
                self.calls = {int(number): fault for number, fault in value.items()}
            elif name in ("seed", "rates", "images", "requests", "slow_s", "retry_after_s"):
                setattr(self, name, value)
            else:
                raise ValueError(f"no fault setting {name}")

    def _drawn(self, among: tuple[str, ...], *salt: object) -> str | None:
        chance = random.Random(repr((self.seed, *salt))).random()
        for name in among:
            chance -= self.rates.get(name, 0.0)
            if chance < 0:
                return name
        return None
