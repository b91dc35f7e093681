"""Labels 8 pictures in batches, in children that are forked one after the other and may be killed; see test_batch.py.

    python killed_batch.py <url> <folder>

A line on stdin, the number of a store operation or 0, starts a child. It prints the child's pid while that is stopped, and its
exit status at its end; the child kills itself at that store operation.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import threading
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from pictures import SECRET, TASK, picture, teacher_at

from pocketvlm.artifacts.folder import FolderStore
from pocketvlm.progress import Progress
from pocketvlm.teacher.batch import BatchClient
from pocketvlm.teacher.budget import Budget
from pocketvlm.teacher.endpoint import Endpoint
from pocketvlm.teacher.journal import Journal
from pocketvlm.teacher.question import TeacherQuestion


def label(url: str, folder: Path) -> None:
    """Writes `outcomes.json` at the end."""
    teacher = teacher_at(url, way="batch", batch_requests=4, batch_poll_s=0.02)
    question = TeacherQuestion(teacher, TASK, folder)
    store, scratch = FolderStore(folder / "store"), folder / "scratch"
    scratch.mkdir(exist_ok=True)
    with (folder / "log").open("a") as log, BatchClient(
        teacher, question, Journal(store, question.key, scratch), store=store, scratch=scratch, key=SECRET, budget=Budget(None),
        progress=Progress("labeller", log), claim_s=1.0,
    ) as client:  # fmt: skip
        replies = client.ask([picture(number) for number in range(8)]).wait()
    outcomes = [[outcome.model_dump() for outcome in reply.outcomes] for reply in replies]
    (folder / "outcomes.json").write_text(json.dumps(outcomes))


def child(url: str, folder: Path, point: int) -> None:
    """Stops until it is told to go on."""
    seen, lock, root = [0], threading.Lock(), str(folder / "store")

    def watch(event: str, arguments: tuple[object, ...]) -> None:
        if event in ("os.link", "os.rename") and str(arguments[1]).startswith(root):
            with lock:
                seen[0] += 1
                if seen[0] == point:
                    os.kill(os.getpid(), signal.SIGKILL)

    if point:
        sys.addaudithook(watch)
    os.kill(os.getpid(), signal.SIGSTOP)
    label(url, folder)


def warm_up(url: str) -> None:
    """Imports before the fork what takes seconds."""

    async def touch() -> None:
        client = Endpoint(teacher_at(url), SECRET).connect()
        assert client.files.with_raw_response and client.files.with_streaming_response and client.batches.with_raw_response
        await client.close()

    asyncio.run(touch())


def main(url: str, folder: Path) -> None:
    warm_up(url)
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            try:
                child(url, folder, int(line))
                os._exit(0)
            finally:
                os._exit(1)
        os.waitpid(pid, os.WUNTRACED)
        print(pid, flush=True)
        print(os.waitpid(pid, 0)[1], flush=True)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
