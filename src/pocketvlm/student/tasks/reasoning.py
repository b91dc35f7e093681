"""`answer: reasoning`: a line of reasons, then the class.

```text
Reasoning: ...
Answer: name
```

The reason is part of what the student writes, never of what it is asked: the phone has no teacher.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from typing import Any

from pocketvlm.run_file.template import fill, placeholders
from pocketvlm.student.tasks.kind import Choice, Said, TaskKind, alternatives, quoted
from pocketvlm.student.tasks.label import clash_problems

REASONING, ANSWER = "Reasoning: ", "\nAnswer:"


class Reasoning(TaskKind):
    """One of the classes, after a reason."""

    def answer(self, label: str, reason: str | None = None) -> str:
        """Both lines; the reason's own line breaks become spaces. Raises ValueError without a reason."""
        words = " ".join((reason or "").split())
        if not words:
            raise ValueError("there is no reason to learn")
        return f"{REASONING}{words}{ANSWER} {label}"

    def read(self, text: str) -> Said | None:
        """Both lines and nothing else."""
        reason, found, label = text.removeprefix(REASONING).rpartition(ANSWER)
        name = label.removeprefix(" ")
        sound = text.startswith(REASONING) and found and label.startswith(" ") and "\n" not in reason and reason.strip()
        return Said(name, reason) if sound and name in self.classes else None

    def grammar(self, lead: str) -> str:
        """A line of at least one character, then exactly one class name."""
        names = alternatives([f" {name}" for name in self.classes])
        return f"root ::= {quoted(lead + REASONING)} [^\\n]+ {quoted(ANSWER)} ({names})\n"

    def choice(self, lead: str) -> Choice:
        """On the second line."""
        return Choice(ANSWER, [f" {name}" for name in self.classes])

    def opening(self) -> str:
        """The first word; the space after it belongs to the next token."""
        return REASONING.rstrip()

    def problems(self) -> Iterator[str]:
        """As for labels."""
        yield from clash_problems(self.classes)

    def longest(self, tokens: Callable[[str], int]) -> str | None:
        """Of the templates with every class; unknown where the reasons are the teacher's."""
        answers = [self.answer(name, reason) for name in self.classes for reason in self.templated(name)]
        return max(answers, key=tokens, default=None)

    def templated(self, label: str) -> list[str]:
        """The reasons that the run file's templates give for a label."""
        values = {"label": label, "description": self.task.classes[label].strip(), "classes": ", ".join(self.classes)}
        return [fill(template, values) for template in self.task.reasons]

    def reason(self, label: str, sha256: str, of_teacher: str | None) -> str | None:
        """The reason that an image's student learns: a template chosen by the image's bytes, else the teacher's."""
        if not self.task.reasons:
            return of_teacher
        templates = self.templated(label)
        return templates[int(hashlib.sha256(f"{sha256}/reason".encode()).hexdigest(), 16) % len(templates)]

    def _own_settings(self) -> dict[str, Any]:
        described = any("description" in placeholders(template) for template in self.task.reasons)
        return {
            "answer": "reasoning", "classes": self.classes, "reasons": list(self.task.reasons),
            **({"descriptions": dict(self.task.classes)} if described else {}),
        }  # fmt: skip
