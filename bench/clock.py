"""Time by the wall and by the CPU, and how busy the machine was meanwhile."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Spent:
    """What one side took for `units` samples or images."""

    units: int = 0
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    """Of all threads of this process: other people's load lengthens `seconds` more than this."""
    load: float = 0.0
    """Average number of processes that wanted a core in the last minute (getloadavg)."""
    notes: dict[str, Any] = field(default_factory=dict)

    @property
    def seconds_each(self) -> float:
        """Wall seconds a unit."""
        return self.seconds / self.units

    @property
    def cpu_seconds_each(self) -> float:
        """CPU seconds a unit."""
        return self.cpu_seconds / self.units

    def followed_by(self, other: Spent) -> Spent:
        """Both, one after the other, on the same units."""
        assert self.units == other.units
        return Spent(self.units, self.seconds + other.seconds, self.cpu_seconds + other.cpu_seconds, max(self.load, other.load))


@contextmanager
def measured(units: int) -> Iterator[Spent]:
    """Measures its block."""
    spent = Spent(units)
    wall, cpu = time.perf_counter(), time.process_time()
    yield spent
    spent.seconds, spent.cpu_seconds = time.perf_counter() - wall, time.process_time() - cpu
    spent.load = round(os.getloadavg()[0], 2)
