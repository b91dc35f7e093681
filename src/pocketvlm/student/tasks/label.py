"""`kind: classify` with `answer: label`: the class name and nothing else."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from pocketvlm.student.tasks.kind import Choice, Said, TaskKind, alternatives


class Labelling(TaskKind):
    """One of the classes."""

    closed = True

    def answer(self, label: str, reason: str | None = None) -> str:
        """The class name, whatever the reason."""
        return label

    def read(self, text: str) -> Said | None:
        """Exactly a class name."""
        return Said(text) if text in self.classes else None

    def grammar(self, lead: str) -> str:
        """Exactly one class name."""
        return f"root ::= {alternatives([lead + name for name in self.classes])}\n"

    def choice(self, lead: str) -> Choice:
        """At once."""
        return Choice("", [lead + name for name in self.classes])

    def problems(self) -> Iterator[str]:
        """No class name may begin another one."""
        yield from clash_problems(self.classes)

    def longest(self, tokens: Callable[[str], int]) -> str:
        """Of the class names."""
        return max(self.classes, key=tokens)

    def _own_settings(self) -> dict[str, Any]:
        return {"answer": "label", "classes": self.classes}


def prefix_clashes(classes: Sequence[str]) -> list[tuple[str, str]]:
    """Pairs in which one class name begins the other: whether the answer has ended is then a guess of the model."""
    return [(a, b) for a in classes for b in classes if a != b and b.startswith(a)]


def clash_problems(classes: Sequence[str]) -> Iterator[str]:
    """A line for each pair of `prefix_clashes`."""
    for shorter, longer in prefix_clashes(classes):
        yield (f"classes: {shorter!r} is the beginning of {longer!r}, so the end of the answer would be a guess; "
               "rename one")  # fmt: skip
