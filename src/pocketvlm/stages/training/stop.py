"""SIGTERM and SIGINT become a wish that the loop looks at between two steps."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any, Self

from pocketvlm.errors import Interrupted

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Stop:
    """A context in which the signals only set `asked`; the handlers of before come back at its end."""

    def __init__(self) -> None:
        self.asked = False
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._ask) for number in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        del number, frame
        self.asked = True

    def check(self) -> None:
        """For work that is not worth saving. Raises Interrupted if a signal came."""
        if self.asked:
            raise Interrupted("stopped while preparing; run the same command again to go on")
