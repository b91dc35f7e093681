"""Opens `hub` sources for the tests, one for each line of JSON that it is sent: the Hub's client reads HF_ENDPOINT when it is
imported, so it has a process of its own."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import SecretStr

from pocketvlm.environment import Environment
from pocketvlm.errors import PocketVLMError
from pocketvlm.run_file import HubSource
from pocketvlm.sources.open import open_source
from pocketvlm.sources.record import Context


class Reader:
    """The side of the tests."""

    def __init__(self, process: subprocess.Popen[str], folder: Path) -> None:
        self._process = process
        self.folder = folder

    def read(
        self, classes: list[str], *, cache: Path | None = None, places: tuple[int, int, int] | None = None,
        labelled: bool = True, token: str | None = None, again: bool = False, **settings: object,
    ) -> dict[str, Any]:  # fmt: skip
        """`len`, `records` and what else came, or `error`. `again`: of the reader that the last call has opened."""
        assert self._process.stdin is not None and self._process.stdout is not None
        order = {"classes": classes, "cache": str(cache or self.folder / "cache"), "places": places, "labelled": labelled,
                 "token": token, "again": again, "source": {"kind": "hub", "revision": "0" * 40, **settings}}  # fmt: skip
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        return dict(json.loads(self._process.stdout.readline()))


@contextmanager
def reading(endpoint: str, folder: Path) -> Iterator[Reader]:
    """A process that asks `endpoint`, with a home folder of its own that must stay empty: `folder/home`.

    `datasets` would import torch where there is one: many seconds, and the labeller's image has none.
    """
    (folder / "home").mkdir()
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING", "XDG_"))}
    process = subprocess.Popen(
        [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env={**kept, "HF_ENDPOINT": endpoint, "HOME": str(folder / "home"), "USE_TORCH": "NO"},
    )  # fmt: skip
    with process:
        yield Reader(process, folder)
        assert process.stdin is not None
        process.stdin.close()
        process.wait(timeout=30)


def main() -> None:
    reader = None
    for line in sys.stdin:
        order = json.loads(line)
        try:
            if not order["again"] or reader is None:
                token = SecretStr(order["token"]) if order["token"] else None
                environment = Environment(cache=Path(order["cache"]), hub_token=token)
                context = Context(Path(), order["classes"], labelled=order["labelled"], environment=environment)
                reader = open_source(HubSource.model_validate(order["source"]), context)
            places = range(*order["places"]) if order["places"] else range(len(reader))
            told = {"records": [_told(record) for record in reader.records(places)], "piece": reader.PIECE_RECORDS}
            told |= {"len": len(reader)} if order["places"] is None else {}
        except PocketVLMError as error:
            told = {"error": type(error).__name__, "message": str(error)}
        told["heavy"] = sorted({"datasets", "torch", "pandas"} & set(sys.modules))
        print(json.dumps(told), flush=True)


def _told(record: Any) -> dict[str, Any]:
    told = {name: getattr(record, name) for name in ("source_id", "label", "url", "author", "licence")}
    told["sha256"] = hashlib.sha256(record.data).hexdigest() if record.data is not None else None
    told["problem"] = record.problem.reason if record.problem else None
    return told


if __name__ == "__main__":
    main()
