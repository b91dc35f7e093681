"""How a stage shares its work: its own share in pieces that survive it, and all shares for whoever saved the last one.

Nobody waits for anybody. Each process saves its share and then looks whether all shares are there: of two that end
at once at least one sees the other's, because a store shows what was written before to every listing after.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from pocketvlm.artifacts.artifact import find
from pocketvlm.artifacts.shares import PieceName, Shares
from pocketvlm.artifacts.store import Store
from pocketvlm.environment import Shard
from pocketvlm.errors import Corrupt
from pocketvlm.progress import Progress

Item = TypeVar("Item")


@dataclass(frozen=True)
class Piece:
    """A part of a share that is saved whole."""

    name: str
    fill: Callable[[Path], None]
    """Makes its files in an empty folder, from the inputs alone: any process may have to."""


@dataclass(frozen=True)
class Share:
    """A whole share, on this machine."""

    folders: list[Path]
    """One for each piece, in the stage's order."""
    seconds: float
    """Spent on its pieces, by whoever saved them."""


Plan = Callable[[Shard], Sequence[Piece]]
"""The pieces of any share, in order. Cheap: what a piece needs is loaded when it is filled."""


@dataclass(frozen=True)
class Desk:
    """One process' place in the shared work on one artifact."""

    store: Store
    kind: str
    id: str
    shard: Shard
    folder: Path
    """Where pieces are made and fetched to."""
    progress: Progress

    def share(self, plan: Plan) -> list[Share] | None:
        """Saves what is missing of this process' share. Returns all shares.

        None: others are not all there yet, or the artifact is published already and the shares are gone.
        """
        shares = Shares(self.store, self.kind, self.id, self.shard.count)
        saved = shares.saved()
        own = [((self.shard.index, piece.name), piece) for piece in plan(self.shard)]
        if kept := sum(name in saved for name, _ in own):
            self.progress.line(f"going on: {kept} of {len(own)} pieces were saved before")
        for name, piece in own:
            if name not in saved:
                shares.save(name, *self._filled(name, piece))
        everybody = [plan(Shard(index, self.shard.count)) for index in range(self.shard.count)]
        saved = shares.saved()
        missing = [index for index, pieces in enumerate(everybody) if any((index, p.name) not in saved for p in pieces)]
        if missing:
            if not self._published():
                self.progress.line(f"share {self.shard.index} of {self.shard.count} is saved; not there yet: "
                                   f"{', '.join(map(str, missing))}; whoever saves the last one publishes")  # fmt: skip
            return None
        if self.shard.count > 1:
            self.progress.line(f"all {self.shard.count} shares are there and are put together")
        collected = []
        for index, pieces in enumerate(everybody):
            share = self._collect(shares, index, pieces)
            if share is None:
                return None
            collected.append(share)
        return collected

    def _published(self) -> bool:
        return find(self.store, self.kind, self.id) is not None

    def _filled(self, name: PieceName, piece: Piece) -> tuple[Path, float]:
        """Makes a piece; its folder and the seconds that it took."""
        folder = self._folder(name)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        clock = time.perf_counter()
        piece.fill(folder)
        return folder, round(time.perf_counter() - clock, 3)

    def _collect(self, shares: Shares, index: int, pieces: Sequence[Piece]) -> Share | None:
        """Fetches a share. A damaged piece is made again here: its own process may have ended long ago."""
        names = [(index, piece.name) for piece in pieces]
        seconds = 0.0
        for name, piece in zip(names, pieces, strict=True):
            try:
                seconds += shares.fetch(name, self._folder(name))
            except Corrupt as error:
                if self._published():  # somebody was faster, and has cleared the shares away
                    return None
                self.progress.warn(f"piece {name[1]} of share {index} is made again: {error}")
                shares.replace(name, *self._filled(name, piece))
                seconds += shares.fetch(name, self._folder(name))
        return Share([self._folder(name) for name in names], round(seconds, 3))

    def _folder(self, name: PieceName) -> Path:
        return self.folder / f"{name[0]}" / name[1]


def dealt(total: int, shares: Sequence[Sequence[Item]], batch: int = 1) -> list[Item]:
    """The items of all shares in their order before `Shard.take` with the same `batch`; `total` of them."""
    hands = [iter(share) for share in shares]
    return [next(hands[place // batch % len(hands)]) for place in range(total)]
