"""Runs one piece of work again and again, killed at its first, second, third ... file operation; see test_kill.py.

    python killed.py <artifact|release|pull|partial|share> <empty folder>

A child is forked for each point; Python's audit events are the points, and SIGKILL comes before the operation is done.
After each, this process looks as a reader, runs the work again, and looks once more. Prints one JSON object.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from conftest import make_release

from pocketvlm.artifacts.artifact import find, publish
from pocketvlm.artifacts.folder import FolderStore
from pocketvlm.artifacts.partial import Partial
from pocketvlm.artifacts.pull import pull
from pocketvlm.artifacts.release import publish_release
from pocketvlm.artifacts.shares import Shares
from pocketvlm.errors import UserError

EVENTS = {"open", "os.mkdir", "os.rename", "os.link", "os.remove", "os.rmdir", "os.scandir", "os.listdir",
          "fcntl.flock", "shutil.rmtree"}


class Artifact:
    """A published artifact of two files, one of them empty."""

    def __init__(self, root: Path) -> None:
        self.root, self.inputs = root / "store", root.parent / "in"

    def prepare(self) -> None:
        (self.inputs / "sub").mkdir(parents=True, exist_ok=True)
        (self.inputs / "sub" / "file").write_text("weights")
        (self.inputs / "empty").touch()

    def work(self) -> None:
        publish(FolderStore(self.root), "ggufs", "id1", self.inputs, inputs={"merger": "x"}, settings={},
                facts={"n": 1}, measurements={"seconds": 1})

    def look(self) -> bool:
        """Whether a reader finds it; a half one would raise Corrupt."""
        found = find(FolderStore(self.root), "ggufs", "id1")
        if found is not None:
            found.fetch(self.root.parent / "fetched")
        return found is not None


class Release(Artifact):
    """A release, published."""

    def prepare(self) -> None:
        self.release = make_release(self.inputs)

    def work(self) -> None:
        publish_release(FolderStore(self.root), self.release, self.inputs, {"latency_ms": 1})

    def look(self) -> bool:
        try:
            pull(FolderStore(self.root), "digits", None, self.root.parent / "fetched")
        except UserError:
            return False
        return True


class Pull(Artifact):
    """A release pulled over an older one of other files."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.store, self.root = FolderStore(root.parent / "releases"), root / "out"

    def prepare(self) -> None:
        for text in ("old", "new"):
            release = make_release(self.inputs, text, version=text)
            publish_release(self.store, release, self.inputs)
        pull(self.store, "digits", "old", self.root)

    def work(self) -> None:
        pull(self.store, "digits", "new", self.root, ["q4_0"])

    def look(self) -> bool:
        if not (self.root / "release.json").exists():
            return False
        release = json.loads((self.root / "release.json").read_text())
        for file in release["files"]:
            path = self.root / file["name"]
            if release["version"] == "old" or path.exists():
                assert hashlib.sha256(path.read_bytes()).hexdigest() == file["sha256"], path
        return release["version"] == "new"


class Step(Artifact):
    """A third step saved and the first one deleted."""

    def prepare(self) -> None:
        super().prepare()
        self.partial = Partial(FolderStore(self.root), "checkpoints", "id1")
        for step in (1, 2):
            self.partial.save(step, self.inputs)

    def work(self) -> None:
        self.partial.save(3, self.inputs)

    def look(self) -> bool:
        warnings: list[str] = []
        to = self.root.parent / "fetched"
        step = Partial(FolderStore(self.root), "checkpoints", "id1", warn=warnings.append).latest(to)
        assert not warnings, warnings
        if step is not None:
            assert contents(to) == contents(self.inputs)
        assert step in (2, 3)
        return step == 3


class Share(Artifact):
    """A piece of a share, saved and fetched."""

    def work(self) -> None:
        shares = Shares(FolderStore(self.root), "datasets", "id1", 2)
        shares.save((1, "piece"), self.inputs, 1.0)
        shares.fetch((1, "piece"), self.root.parent / "own")

    def look(self) -> bool:
        shares = Shares(FolderStore(self.root), "datasets", "id1", 2)
        if not shares.saved():
            return False
        to = self.root.parent / "fetched"
        shares.fetch((1, "piece"), to)
        assert contents(to) == contents(self.inputs)
        return True


def contents(folder: Path) -> dict[str, str]:
    """Name -> sha256 of every file below `folder`; a lock file is no content."""
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(folder.rglob("*")) if path.is_file() and path.name != "lock"}


def killed_at(point: int, root: Path, work: Callable[[], None]) -> bool:
    """Runs `work` in a child that dies at file operation `point` below `root`; False if it came to its end."""
    child = os.fork()
    if child == 0:
        seen, lock = [0], threading.Lock()

        def watch(event: str, arguments: tuple[object, ...]) -> None:
            if event not in EVENTS or not (event == "fcntl.flock" or str(arguments[0]).startswith(str(root))):
                return
            with lock:
                seen[0] += 1
                if seen[0] == point:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(watch)
        work()
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    if os.WIFSIGNALED(status):
        return True
    assert status == 0, f"the work failed by itself at point {point}"
    return False


def main(what: type[Artifact], folder: Path) -> dict[str, object]:
    undisturbed = what(folder / "undisturbed")
    undisturbed.prepare()
    undisturbed.work()
    expected = contents(undisturbed.root)
    point, early = 0, 0
    while True:
        point += 1
        root = folder / "disturbed"
        trial = what(root)
        trial.prepare()
        killed = killed_at(point, root, trial.work)
        early += not trial.look()
        trial.work()
        assert trial.look(), f"killed at point {point}, run again, and nothing is there"
        if what is not Step:  # attempts have random names
            assert contents(trial.root) == expected, f"killed at point {point}: {contents(trial.root)} not {expected}"
        shutil.rmtree(root)
        if not killed:
            return {"points": point - 1, "invisible": early}


if __name__ == "__main__":
    kinds = {"artifact": Artifact, "release": Release, "pull": Pull, "partial": Step, "share": Share}
    target = Path(sys.argv[2])
    print(json.dumps(main(kinds[sys.argv[1]], target)))
