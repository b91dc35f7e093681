"""Work in progress that outlives its process: step checkpoints, shards. Gone once the artifact is published.

Layout: `partial/<kind>/<id>/<attempt>/<step>/files/...`, then `.../step.json`, written last: a step without it does not
exist. Every process is an attempt of its own, so two at once write beside each other; either may go on from the
other's.
"""

from __future__ import annotations

import shutil
import sys
import uuid
from collections.abc import Callable
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from pocketvlm.artifacts.files import fetch_files, hash_folder, upload_files
from pocketvlm.artifacts.manifest import FileEntry, canonical_json
from pocketvlm.artifacts.store import KeyMissing, Store
from pocketvlm.errors import Corrupt

KEPT = 2
"""Newest steps that stay: if the last one turns out corrupt, there is one before it."""


class _Step(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    files: list[FileEntry]


class Partial:
    """The unfinished work on one artifact. `warn` is told of each step that had to be skipped."""

    def __init__(self, store: Store, kind: str, id: str, *, warn: Callable[[str], None] | None = None) -> None:
        self._store = store
        self._root = f"partial/{kind}/{id}/"
        self._attempt = uuid.uuid4().hex[:12]
        self._warn = warn or (lambda text: print(f"warning: {text}", file=sys.stderr, flush=True))

    def save(self, step: int, folder: Path) -> None:
        """Keeps every file of `folder` as `step`; when it returns, the step outlives this process.

        A step that this attempt has saved already stays as it is.
        Steps older than the two newest of this attempt are deleted, whoever saved them: nobody would take them.
        """
        root = self._step_root(self._attempt, step)
        done = self._steps()
        if (step, self._attempt) in done:
            return
        entries = hash_folder(folder)
        upload_files(self._store, folder, [(entry, f"{root}files/{entry.name}") for entry in entries], {})
        self._store.write(f"{root}step.json", canonical_json(_Step(files=entries).model_dump(mode="json")))
        mine = sorted((number for number, attempt in done if attempt == self._attempt), reverse=True)
        newest = sorted([step, *mine], reverse=True)[:KEPT]
        if len(newest) == KEPT:
            for number, attempt in done:
                if number < newest[-1]:
                    self._delete(attempt, number)

    def latest(self, to: Path) -> int | None:
        """Puts the newest whole step of any attempt into `to` (emptied first); returns its number.

        None: there is nothing to go on from. A step with wrong or missing bytes is skipped with a warning, and the
        next older one is taken.
        """
        for step, attempt in sorted(self._steps(), reverse=True):
            root = self._step_root(attempt, step)
            if to.exists():
                shutil.rmtree(to)
            to.mkdir(parents=True)
            try:
                files = _Step.model_validate_json(self._store.read(f"{root}step.json")).files
                fetch_files(self._store, [(entry, f"{root}files/{entry.name}") for entry in files], to)
            except (Corrupt, KeyMissing, ValidationError) as error:
                self._warn(f"step {step} in {self._store.url}/{root} cannot be used, an older one is taken: {error}")
                continue
            return step
        return None

    def clear(self) -> None:
        """Deletes the steps of every attempt; called once the artifact is published."""
        for step, attempt in self._steps():
            self._delete(attempt, step)
        self._store.delete(self._root)

    def _steps(self) -> set[tuple[int, str]]:
        """(step, attempt) of every complete step."""
        found = set()
        for stored in self._store.list(self._root):
            attempt, number, *rest = stored.key.removeprefix(self._root).split("/")
            if rest == ["step.json"]:
                found.add((int(number), attempt))
        return found

    def _step_root(self, attempt: str, step: int) -> str:
        return f"{self._root}{attempt}/{step:09d}/"

    def _delete(self, attempt: str, step: int) -> None:
        root = self._step_root(attempt, step)
        # First what makes it complete, so that no reader starts on files that are going.
        self._store.delete(f"{root}step.json")
        self._store.delete(root)
