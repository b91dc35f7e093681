"""SIGTERM ends a command at once, with exit code 75: nothing is lost that was saved, and nobody waits for the rest.

The kernel drops signals to PID 1 that have no handler, so without this a pod would sit out its whole grace period. The
handler does not raise: an exception would first wait for threads that upload. The trainer alone saves before it ends;
while it trains, its own handler lies over this one (stages/training/stop.py). Programs that we started end with us
(llamacpp/child.py).
"""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from pocketvlm.errors import Interrupted

_open: set[Path] = set()
"""Temporary folders of this process."""
_ALIVE = ".pocketvlm-alive"
"""In each of them, locked by its process."""


@contextmanager
def ends_on_sigterm() -> Iterator[None]:
    """While it is open, SIGTERM removes the temporary folders and ends the process; the handler of before comes back."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may set handlers
        return
    before = signal.signal(signal.SIGTERM, _end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def temporary_folder(parent: Path, prefix: str) -> Iterator[Path]:
    """A new folder in `parent`, which is made; removed at the end, and on SIGTERM.

    After SIGKILL it stays until the next one is made there: a lock tells whether its process still lives.
    """
    parent.mkdir(parents=True, exist_ok=True)
    makers = os.open(parent, os.O_RDONLY)
    try:
        fcntl.flock(makers, fcntl.LOCK_EX)
        _sweep(parent)
        folder = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
        alive = (folder / _ALIVE).open("w")
        fcntl.flock(alive, fcntl.LOCK_EX)
    finally:
        os.close(makers)
    _open.add(folder)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        _open.discard(folder)
        alive.close()


def _sweep(parent: Path) -> None:
    """Removes what killed processes left."""
    for lock in parent.glob(f"*/{_ALIVE}"):
        with lock.open() as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            shutil.rmtree(lock.parent, ignore_errors=True)


def _end(number: int, frame: FrameType | None) -> None:
    del frame
    # Not print: the signal may have come in the middle of one.
    name = signal.Signals(number).name
    os.write(2, f"error: {name}: ended at once; what is saved stays, run the same command again to go on\n".encode())
    for folder in list(_open):
        shutil.rmtree(folder, ignore_errors=True)
    os._exit(Interrupted.exit_code)
