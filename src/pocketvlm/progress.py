"""What a person sees of a stage: one line per event, a bar on a terminal, plain lines with rate and ETA elsewhere.

The same numbers go to `/metrics`, where it is served.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import TextIO

from pocketvlm.metrics import DONE, ETA, RATE, TOTAL, Metrics

LINE_EVERY_S = 5.0
"""Plain lines of one activity come at most this often; the last one always comes."""
BAR_WIDTH = 24

Number = float | str | Mapping[str, float]
"""A mapping is shown as its sum and exported by its labels; a text is only shown."""


class Progress:
    """Writes to one stream. `stage` leads every line."""

    def __init__(self, stage: str = "", stream: TextIO | None = None) -> None:
        self.stage = stage
        self.metrics = Metrics(stage)
        self._stream = stream or sys.stderr
        self._terminal = self._stream.isatty()
        self._activity: tuple[str, int] | None = None
        self._started = self._printed = 0.0
        self._begun_at = 0
        self._bar_open = False

    def line(self, text: str) -> None:
        """One event."""
        self._close_bar()
        self._write(f"{self._prefix()}{text}\n")

    def warn(self, text: str) -> None:
        """Something that a person should know and that does not stop the run."""
        self.line(f"warning: {text}")

    def step(
        self, done: int, total: int, unit: str, *, unseen: Mapping[str, Number] | None = None, **numbers: Number
    ) -> None:
        """`done` of `total` units of one activity; `numbers` are shown beside it, `unseen` ones only exported."""
        now = time.monotonic()
        if self._activity != (unit, total) or done < self._begun_at:
            self._activity, self._started, self._printed, self._begun_at = (unit, total), now, 0.0, max(0, done - 1)
        rate = self._rate(done, now)
        self._export(done, total, unit, rate, {**numbers, **(unseen or {})})
        last = done >= total
        if not last and now - self._printed < (0.1 if self._terminal else LINE_EVERY_S):
            return
        self._printed = now
        text = f"{done}/{total} {unit}{_pace(total - done, rate)}{_shown(numbers)}"
        if self._terminal:
            filled = BAR_WIDTH * done // max(total, 1)
            self._write(f"\r\x1b[K{self._prefix()}{'█' * filled}{'░' * (BAR_WIDTH - filled)} {text}")
            self._bar_open = True
            if last:
                self._close_bar()
        else:
            self._write(f"{self._prefix()}{text}\n")

    def _rate(self, done: int, now: float) -> float | None:
        """Units a second; None while it would be a guess."""
        spent, made = now - self._started, done - self._begun_at
        return None if spent < 0.5 or made <= 1 else made / spent

    def _export(self, done: int, total: int, unit: str, rate: float | None, numbers: Mapping[str, Number]) -> None:
        self.metrics.set(DONE, done, unit)
        self.metrics.set(TOTAL, total, unit)
        if rate is not None:
            self.metrics.set(RATE, rate, unit)
            self.metrics.set(ETA, max(0, total - done) / rate, unit)
        for name, value in numbers.items():
            if not isinstance(value, str):
                self.metrics.set_number(name, value)

    def _prefix(self) -> str:
        return f"{self.stage:<10} " if self.stage else ""

    def _close_bar(self) -> None:
        if self._bar_open:
            self._bar_open = False
            self._write("\n")

    def _write(self, text: str) -> None:
        self._stream.write(text)
        self._stream.flush()


def duration(seconds: float) -> str:
    """`8.2 s`, `3 min 05 s`, `2 h 07 min`."""
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def _pace(left: int, rate: float | None) -> str:
    if rate is None:
        return ""
    return f" · {rate:.3g}/s" + (f", {duration(left / rate)} left" if left > 0 else "")


def _shown(numbers: Mapping[str, Number]) -> str:
    parts = []
    for name, value in numbers.items():
        number = sum(value.values()) if isinstance(value, Mapping) else value
        parts.append(f"{name} {number if isinstance(number, str) else f'{number:.4g}'}")
    return f" · {', '.join(parts)}" if parts else ""
