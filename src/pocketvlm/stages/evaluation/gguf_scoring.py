"""Many images asked of one GGUF pair, and keeping what it said while the other pairs are asked."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from pocketvlm.phone import Pair, Reply


def ask_all(pair: Pair, images: Sequence[bytes], step: Callable[[int], None]) -> list[Reply]:
    """Answers to all images, in order; `step` is told how many are done."""
    replies = []
    for image in images:
        replies.append(pair.ask(image))
        step(len(replies))
    return replies


def to_json(replies: Sequence[Reply]) -> list[dict[str, Any]]:
    """For keeping the answers of a pair while the others are asked."""
    return [dict(vars(reply)) for reply in replies]


def from_json(rows: Iterable[Mapping[str, Any]]) -> list[Reply]:
    """What `to_json` wrote: floats survive JSON exactly."""
    return [Reply(**row) for row in rows]
