"""Texts with placeholders such as `{label}` in them. `{{` and `}}` are braces."""

from __future__ import annotations

import difflib
import string
from collections.abc import Iterator, Mapping, Sequence

OF_A_LABEL = ("label", "description", "classes")
"""Placeholders of a text about one class."""
OF_A_PROMPT = ("system", "image", "question")
"""Placeholders of a whole prompt."""


def placeholders(template: str, known: Sequence[str] = OF_A_LABEL) -> list[str]:
    """Names that are filled in, in order. Raises ValueError for a brace that is alone and for a name that is not known."""
    return [name for _, name in _pieces(template, known) if name is not None]


def fill(template: str, values: Mapping[str, str]) -> str:
    """The text. Values are put in as they are: a brace in one of them is a brace. Raises ValueError as `placeholders` does."""
    return "".join(text + ("" if name is None else values[name]) for text, name in _pieces(template, list(values)))


def _pieces(template: str, known: Sequence[str]) -> Iterator[tuple[str, str | None]]:
    """Text, and the placeholder after it. Neither indices nor formats: str.format would reach into Python with them."""
    try:
        found = list(string.Formatter().parse(template))
    except ValueError as error:
        raise ValueError("a brace is alone; write {{ for { and }} for }") from error
    for text, name, form, conversion in found:
        if name is not None and (name not in known or form or conversion):
            whole = f"{{{name}{f'!{conversion}' if conversion else ''}{f':{form}' if form else ''}}}"
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
            hint = f"did you mean {{{near[0]}}}?" if near else f"there are {', '.join(f'{{{n}}}' for n in known)}"
            raise ValueError(f"{whole} is no placeholder; {hint} (a brace is written {{{{ or }}}})")
        yield text, name
