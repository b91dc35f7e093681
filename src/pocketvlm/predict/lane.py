"""One pair on its server, and the one thread that asks it."""

from __future__ import annotations

import threading
from concurrent.futures import Future, ThreadPoolExecutor

from pocketvlm.phone import Pair, Reply
from pocketvlm.sources.record import Problem


class Lane:
    """Asks in the order in which it is told to. The server ends with the thread that made the lane: see llamacpp/child.py."""

    def __init__(self, pair: Pair) -> None:
        """Raises ToolError when the server does not start."""
        self._pair = pair
        self._asker = ThreadPoolExecutor(1, "ask")
        self._in_use = threading.Lock()
        self._pair.__enter__()

    def submit(self, png: bytes) -> Future[Reply]:
        """The answer to an image; raises ToolError."""
        return self._asker.submit(self._ask, png)

    def submit_prepared(self, png: Future[bytes | Problem]) -> Future[Reply | Problem]:
        """The answer to an image that is being prepared, or what was found wrong with it; raises ToolError."""
        return self._asker.submit(self._ask_prepared, png)

    def _ask_prepared(self, png: Future[bytes | Problem]) -> Reply | Problem:
        data = png.result()
        return data if isinstance(data, Problem) else self._ask(data)

    def _ask(self, png: bytes) -> Reply:
        with self._in_use:
            return self._pair.ask(png)

    def restart(self) -> None:
        """A new server; what waits is asked there. Raises ToolError when it does not start."""
        with self._in_use:
            self._pair.__exit__(None, None, None)
            self._pair.__enter__()

    def close(self) -> None:
        """Ends server and thread; what waits is not asked."""
        self._asker.shutdown(cancel_futures=True)
        self._pair.__exit__(None, None, None)
