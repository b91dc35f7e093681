"""Programs that we start: on Linux they end with us, however we end."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Callable

_PR_SET_PDEATHSIG = 1


def ends_with_us() -> Callable[[], None] | None:
    """For `preexec_fn` of a program that the main thread starts: a killed stage must leave nothing running."""
    if sys.platform != "linux":
        return None
    parent, libc = os.getpid(), ctypes.CDLL(None)

    def ask() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # we ended before it could ask
            os._exit(1)

    return ask
