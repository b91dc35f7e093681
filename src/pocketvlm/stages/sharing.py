"""How a stage shares its work: its own share in pieces that survive it, and all shares for whoever saved the last one.

No process waits for another. Each process saves its share and then looks whether all shares are there: of two that end
at once at least one sees the other's, because a store shows what was written before to every listing after.
"""

from __future__ import annotations

import shutil
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
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
Settle = Callable[[], None]
"""Waits for what a piece still lacks when its own work is done, such as a teacher's answers, and adds it to the files."""


@dataclass(frozen=True)
class Piece:
    """A part of a share that is saved whole."""

    name: str
    fill: Callable[[Path], Settle | None]
    """Makes its files in an empty folder, from the inputs alone: any process may have to. While what it returns has not been
    called, the next pieces are filled."""


@dataclass(frozen=True)
class _Begun:
    """A piece that is filled but not saved; without a folder, one that was saved before."""

    name: PieceName
    piece: Piece
    folder: Path | None = None
    settle: Settle | None = None
    seconds: float = 0.0


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

    def share(
        self, plan: Plan, *, ahead: int = 0, enough: Callable[[Path], bool] | None = None
    ) -> list[Share] | None:
        """Saves what is missing of this process' share. Returns all shares.

        Up to `ahead` pieces wait to be settled while others are filled. `enough` is shown the pieces in order and says whether
        they will do: those that follow do not belong to the share. Only a process that does all of the work may set it.
        None: others are not all there yet, or the artifact is published already and the shares are gone.
        """
        assert enough is None or self.shard.count == 1, "what is enough is known only to who sees all pieces"
        shares = Shares(self.store, self.kind, self.id, self.shard.count)
        own = plan(self.shard)
        needed = self._save(shares, own, ahead, enough)
        everybody = [plan(Shard(index, self.shard.count)) for index in range(self.shard.count)]
        if enough is not None:
            everybody = [own[:needed]]
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

    def _save(self, shares: Shares, own: Sequence[Piece], ahead: int, enough: Callable[[Path], bool] | None) -> int:
        """Fills, settles and saves what is not there; returns how many pieces, from the first, belong to the share."""
        saved = shares.saved()
        if kept := sum((self.shard.index, piece.name) in saved for piece in own):
            self.progress.line(f"going on: {kept} of {len(own)} pieces were saved before")
        for place, begun in enumerate(_at_most_ahead((self._begin(piece, saved) for piece in own), ahead)):
            if begun.folder is not None:
                self._settle(shares, begun)
            if enough is not None:
                found = self._collect(shares, self.shard.index, [begun.piece])
                if found is None or enough(found.folders[0]):
                    return place + 1
        return len(own)

    def _begin(self, piece: Piece, saved: set[PieceName]) -> _Begun:
        name = (self.shard.index, piece.name)
        return _Begun(name, piece) if name in saved else _Begun(name, piece, *self._filled(name, piece))

    def _settle(self, shares: Shares, begun: _Begun) -> None:
        assert begun.folder is not None, "it was filled"
        clock = time.perf_counter()
        if begun.settle:
            begun.settle()
        shares.save(begun.name, begun.folder, round(begun.seconds + time.perf_counter() - clock, 3))

    def _published(self) -> bool:
        return find(self.store, self.kind, self.id) is not None

    def _filled(self, name: PieceName, piece: Piece) -> tuple[Path, Settle | None, float]:
        """Makes a piece; its folder, what has to be waited for, and the seconds that it took."""
        folder = self._folder(name)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        clock = time.perf_counter()
        settle = piece.fill(folder)
        return folder, settle, time.perf_counter() - clock

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
                folder, settle, taken = self._filled(name, piece)
                if settle:
                    settle()
                shares.replace(name, folder, round(taken, 3))
                seconds += shares.fetch(name, self._folder(name))
        return Share([self._folder(name) for name in names], round(seconds, 3))

    def _folder(self, name: PieceName) -> Path:
        return self.folder / f"{name[0]}" / name[1]


def _at_most_ahead(begun: Iterator[_Begun], ahead: int) -> Iterator[_Begun]:
    """The same pieces, of which at most `ahead` more than were taken have been filled; none, while the next was saved before:
    those may be enough."""
    waiting: deque[_Begun] = deque()
    for item in begun:
        waiting.append(item)
        while waiting and (len(waiting) > ahead or waiting[0].folder is None):
            yield waiting.popleft()
    yield from waiting


def dealt(total: int, shares: Sequence[Sequence[Item]], batch: int = 1) -> list[Item]:
    """The items of all shares in their order before `Shard.take` with the same `batch`; `total` of them."""
    hands = [iter(share) for share in shares]
    return [next(hands[place // batch % len(hands)]) for place in range(total)]
