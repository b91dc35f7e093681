"""Taking in turn, so that a prefix of any length has something of everything."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import TypeVar

T = TypeVar("T")


def in_turn(queues: Sequence[Iterator[T]]) -> Iterator[T]:
    """One of each queue, then one more of each; queues that end drop out. Nothing is taken before it is asked for."""
    waiting = list(queues)
    while waiting:
        left = []
        for queue in waiting:
            for item in islice(queue, 1):
                left.append(queue)
                yield item
        waiting = left


def untaken(items: Iterable[tuple[str, T]], taken: set[str]) -> Iterator[T]:
    """Items whose names are not in `taken`, which they enter; queues that share it never give one thing twice."""
    for name, item in items:
        if name not in taken:
            taken.add(name)
            yield item
