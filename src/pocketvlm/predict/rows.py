"""Predictions as rows of a table, of JSON lines or of CSV; each is written as soon as it is there."""

from __future__ import annotations

import csv
import json
from abc import ABC, abstractmethod
from typing import Any, TextIO

from pocketvlm.predict.answer import Prediction, written

FORMATS = ("table", "jsonl", "csv")
COLUMNS = ("image", "answer", "best", "confidence", "ms", "reason", "error")
"""Of CSV."""
WIDEST = 60
"""Characters of an image's name in the table; of a longer one, its end is shown."""


class Rows(ABC):
    """Writes to one stream."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    @abstractmethod
    def write(self, row: Prediction) -> None:
        """One row."""


class JsonLines(Rows):
    """An object a line. `answer` and `best` of an `extract` task are objects, keys in the order of its fields."""

    def write(self, row: Prediction) -> None:
        said: dict[str, Any] = {"image": row.image}
        if row.error is not None:
            said["error"] = row.error
        else:
            said |= {"answer": row.answer, "best": row.best, "confidence": _rounded(row.confidence, 6), "ms": _rounded(row.ms, 2)}
            said |= {} if row.reason is None else {"reason": row.reason}
            said |= {} if row.best is not None else {"text": row.text}
        self._stream.write(json.dumps(said, ensure_ascii=False) + "\n")
        self._stream.flush()


class Csv(Rows):
    """`COLUMNS`; `?` is an answer that is not to be shown; fields of an `extract` task are compact JSON."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__(stream)
        self._writer = csv.writer(stream, lineterminator="\n")
        self._writer.writerow(COLUMNS)

    def write(self, row: Prediction) -> None:
        if row.error is not None:
            self._writer.writerow([row.image, "", "", "", "", "", row.error])
        else:
            answer = "?" if row.answer is None else written(row.answer)
            best = written(row.text if row.best is None else row.best)
            numbers = [_rounded(row.confidence, 6), _rounded(row.ms, 2)]
            self._writer.writerow([row.image, answer, best, *numbers, row.reason or "", ""])
        self._stream.flush()


class Table(Rows):
    """For a person. Images without an answer are left out, and listed by whoever has the table written."""

    def __init__(self, stream: TextIO, longest_name: int) -> None:
        super().__init__(stream)
        self._width = min(WIDEST, max(longest_name, len("image")))
        self._stream.write(f"{'image':<{self._width}}  confidence        ms  answer\n")

    def write(self, row: Prediction) -> None:
        if row.error is not None:
            return
        name = _shown(row.image)
        name = name if len(name) <= self._width else f"…{name[1 - self._width :]}"
        reason = f"  because: {_shown(row.reason)}" if row.reason else ""
        numbers = f"{row.confidence or 0:>10.4f}  {row.ms or 0:>8.1f}"
        self._stream.write(f"{name:<{self._width}}  {numbers}  {_shown(str(row))}{reason}\n")
        self._stream.flush()


def open_rows(format: str, stream: TextIO, longest_name: int) -> Rows:
    """The writer of one of FORMATS."""
    if format == "table":
        return Table(stream, longest_name)
    return Csv(stream) if format == "csv" else JsonLines(stream)


def _rounded(value: float | None, digits: int) -> float | None:
    return None if value is None else round(value, digits)


def _shown(text: str) -> str:
    """Without what a terminal would obey."""
    return "".join(character if character.isprintable() else "�" for character in text)
