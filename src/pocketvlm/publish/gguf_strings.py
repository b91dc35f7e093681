"""The texts of a GGUF file's header, without its tensors."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pocketvlm.errors import Corrupt
from pocketvlm.llamacpp.gguf_file import NotGguf, read_gguf


def gguf_texts(path: Path) -> Iterator[tuple[str, str, bool]]:
    """(key, text, whether it is one of a list) of every key and text value. Raises Corrupt for what is no GGUF file."""
    try:
        keys = read_gguf(path).keys
    except NotGguf as error:
        raise Corrupt(f"{path.name}: {error}") from error
    for key, value in keys.items():
        yield "key", key, False
        if isinstance(value, str):
            yield key, value, False
        else:
            yield from ((key, text, True) for text in _listed(value))


def _listed(value: Any) -> Iterator[str]:
    """Texts in lists, and in lists of lists."""
    for item in value if isinstance(value, list) else ():
        yield from [item] if isinstance(item, str) else _listed(item)
