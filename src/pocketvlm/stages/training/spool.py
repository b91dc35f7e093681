"""A tensor that grows by rows and may become larger than memory: above a budget it lies in a memory-mapped file."""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from pocketvlm.student.memory import HELD_BYTES


class Spool:
    """Rows of one shape and dtype are appended; `finish` gives them as one tensor."""

    def __init__(self, path: Path, budget_bytes: int = HELD_BYTES) -> None:
        """`path` is the file that is used above the budget."""
        self._path = path
        self._budget_bytes = budget_bytes
        self._held: list[Tensor] = []
        self._rows = self._bytes = 0
        self._file: BinaryIO | None = None

    def append(self, rows: Tensor) -> None:
        """Adds rows; the first dimension counts them. The tensor must be on the CPU."""
        self._rows += len(rows)
        self._bytes += rows.nbytes
        self._held.append(rows)
        if self._file is None and self._bytes > self._budget_bytes:
            self._file = self._path.open("wb")
        if self._file is not None:
            for held in self._held:
                self._file.write(held.contiguous().view(torch.uint8).numpy().data)
            self._held = [rows[:0].clone()]  # keeps dtype and shape of a row

    def finish(self) -> Tensor:
        """All rows. Raises ValueError when there are none."""
        if not self._rows:
            raise ValueError("nothing was appended")
        if self._file is None:
            return torch.cat(self._held)
        self._file.close()
        row = self._held[0]
        count = self._rows * row.shape[1:].numel()
        return torch.from_file(str(self._path), shared=False, size=count, dtype=row.dtype).view(-1, *row.shape[1:])
