"""A cap on money: never passed by more than the calls in flight, and at the same image in every run of equal answers."""

from __future__ import annotations

import threading

from pocketvlm.run_file import Price
from pocketvlm.teacher.answers import Usage


def cost_usd(usage: Usage, price: Price) -> float:
    """US dollars of a usage."""
    cached_price = price.input_usd if price.cached_input_usd is None else price.cached_input_usd
    fresh = usage.input_tokens - usage.cached_input_tokens
    dollars = (fresh * price.input_usd + usage.cached_input_tokens * cached_price + usage.output_tokens * price.output_usd) / 1e6
    return dollars * price.batch_share if usage.batched else dollars


class Budget:
    """Costs by position. An image is admitted while those before it have cost less than the cap.

    What is kept of a run that the cap ended are the images up to the first with which the sum passes the cap: they follow from
    the answers alone, so a killed run ends with the same ones.
    """

    def __init__(self, cap_usd: float | None) -> None:
        self._cap_usd = cap_usd
        self._lock = threading.Lock()
        self._costs: dict[int, float] = {}
        self._next = 0
        self._before_usd = 0.0

    def admits(self, position: int) -> bool:
        """Whether the image at `position` may be asked. Each teacher asks in rising order, one may be ahead of the other."""
        if self._cap_usd is None:
            return True
        with self._lock:
            if position < self._next:
                return sum(usd for place, usd in self._costs.items() if place < position) < self._cap_usd
            while self._next < position:
                self._before_usd += self._costs.get(self._next, 0.0)
                self._next += 1
            return self._before_usd < self._cap_usd

    def pay(self, position: int, usd: float) -> None:
        """Adds what an answer for the image at `position` has cost, now or in an earlier run."""
        with self._lock:
            self._costs[position] = self._costs.get(position, 0.0) + usd
            if position < self._next:
                self._before_usd += usd

    @property
    def spent_usd(self) -> float:
        """All of it."""
        with self._lock:
            return sum(self._costs.values())

    @property
    def left_usd(self) -> float | None:
        """Of the cap, what is not spent; None without a cap."""
        return None if self._cap_usd is None else max(0.0, self._cap_usd - self.spent_usd)
