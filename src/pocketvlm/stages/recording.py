"""What one process writes into the record of its stage, beside others that may run the same stage at once."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Literal

from pocketvlm.artifacts.artifact import find
from pocketvlm.artifacts.run_record import StageRecord, change_record
from pocketvlm.artifacts.store import Store

_ENDED = ("done", "found")


class Recorder:
    """One attempt at a stage of a run."""

    def __init__(self, store: Store, run: str, stage: str, kind: str) -> None:
        self._store, self._run = store, run
        self._clock = time.monotonic()
        self._counted = False
        self._record = StageRecord(stage=stage, kind=kind, id="", status="running", started=_now())

    @property
    def seconds(self) -> float:
        """Since this attempt began."""
        return time.monotonic() - self._clock

    def begin(self, id: str) -> None:
        """The stage has something to make."""
        self._record = self._record.model_copy(update={"id": id})
        self._write()

    def end(self, status: Literal["done", "found", "failed"], id: str | None = None, message: str = "") -> None:
        """The stage has ended in this process."""
        self._record = self._record.model_copy(update={
            "status": status, "id": self._record.id if id is None else id, "message": message,
            "seconds": round(self.seconds, 3), "finished": _now(),
        })  # fmt: skip
        self._write()

    def _write(self) -> None:
        change_record(self._store, self._run, self._record.stage, self._after)
        self._counted = True

    def _after(self, before: StageRecord | None) -> StageRecord | None:
        """This attempt's record, unless another attempt has ended well: the next stage goes by that."""
        if before is not None and before.status in _ENDED:
            if self._record.status == "found" and before.id == self._record.id:
                return None
            if self._record.status in ("running", "failed") and find(self._store, before.kind, before.id):
                return None
        attempts = (before.attempts if before else 0) + (not self._counted)
        return self._record.model_copy(update={"attempts": attempts})


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
