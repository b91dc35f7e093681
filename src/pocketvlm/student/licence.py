"""The licence of a checkpoint, as its model card states it."""

from __future__ import annotations

import re
from pathlib import Path

CARD = "README.md"
NOT_STATED = "not stated"


def licence_of(folder: Path) -> str:
    """`license` of the card's front matter, its name where it is `other`; NOT_STATED without a card or without the key."""
    card = folder / CARD
    return licence_in(card.read_text(errors="replace")) if card.is_file() else NOT_STATED


def licence_in(card: str) -> str:
    """The same of the card's text. The front matter is YAML between two lines of `---`; these keys are plain scalars there."""
    found = re.match(r"\A\s*---[ \t]*\n(.*?)\n---[ \t]*(\n|\Z)", card, re.DOTALL)
    if found is None:
        return NOT_STATED
    licence = _value(found[1], "license")
    name = _value(found[1], "license_name")
    return (name if licence in (None, "other") and name else licence) or NOT_STATED


def _value(matter: str, key: str) -> str | None:
    """A scalar, or the items of a list, one under the other or in brackets."""
    found = re.search(rf"^{key}:[ \t]*(.*(?:\n[ \t]*-[ \t]+.*)*)", matter, re.MULTILINE)
    if found is None:
        return None
    words = [word.strip(" \t'\"") for word in re.split(r"[\[\],\n]|\n?[ \t]*-[ \t]+", found[1])]
    return ", ".join(word for word in words if word) or None
