"""What a task asks, and what its answers mean: one object, for every stage and for the app's side. No torch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pocketvlm.run_file import Task
from pocketvlm.student.families import Template

PROMPT_FORMAT = 2
"""Raise it when a template of a family, or a grammar, becomes other bytes: it is part of every id behind the labels. Answers are
of the labels themselves: their layout is the format of datasets (artifacts/manifest.py)."""


@dataclass(frozen=True)
class Said:
    """What an answer says. Labels are equal exactly when the answers mean the same."""

    label: str
    """A class name; or the fields as compact JSON, keys in the run file's order."""
    reason: str | None = None


@dataclass(frozen=True)
class Choice:
    """Where an answer is decided among few: `texts` that may follow the text `after`."""

    after: str
    texts: list[str]


class TaskKind(ABC):
    """One kind of task. Texts of answers are without the lead (student/prompt.py) that stands before them."""

    closed = False
    """Answers are few and known: they are scored instead of generated."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self.classes: list[str] = list(task.classes)

    def prompt(self, template: Template) -> str:
        """The bytes of `prompt.txt`."""
        return template.of(self.task)

    @abstractmethod
    def answer(self, label: str, reason: str | None = None) -> str:
        """What the student has to say: text of the dataset's `answer` column. Raises ValueError for what it cannot say."""

    @abstractmethod
    def read(self, text: str) -> Said | None:
        """What an answer says; None if it is none of this task's."""

    def reason(self, label: str, sha256: str, of_teacher: str | None) -> str | None:
        """The reason that an image's student learns; None where it learns none. `sha256` is that of the original file, in hex."""
        return None

    def label_of(self, answer: Mapping[str, Any]) -> str:
        """The label in a teacher's valid answer (teacher/schema.py)."""
        return str(answer["label"])

    def values(self, label: str) -> dict[str, Any]:
        """The fields of a label; empty where it is one thing."""
        return {}

    def stratum(self, label: str) -> str:
        """What of a label every split shall have its share of."""
        return label

    @abstractmethod
    def grammar(self, lead: str) -> str | None:
        """The bytes of `grammar.gbnf`; None where llama.cpp makes them of `schema`."""

    def schema(self) -> dict[str, Any] | None:
        """JSON schema of the answers, keys in order; None for answers that are no JSON."""
        return None

    def choice(self, lead: str) -> Choice | None:
        """Where the label is chosen among the classes; None where there are none."""
        return None

    def opening(self) -> str | None:
        """What every answer begins with, to the end of a token; None where answers are closed."""
        return None

    def problems(self) -> Iterator[str]:
        """What cannot work, a line each, beginning with the key below `run.task`."""
        yield from ()

    def longest(self, tokens: Callable[[str], int]) -> str | None:
        """The answer with the most tokens; None where only the labels can tell. `tokens` counts those of an answer."""
        return None

    def settings(self) -> dict[str, Any]:
        """All of the task that shapes prompts and answers, for ids."""
        task = self.task
        return {
            "format": PROMPT_FORMAT, "kind": task.kind, "question": task.question, "system": task.system,
            "prompt_template": task.prompt_template, **self._own_settings(),
        }  # fmt: skip

    @abstractmethod
    def _own_settings(self) -> dict[str, Any]: ...


def alternatives(texts: Sequence[str]) -> str:
    """GBNF for one of some texts."""
    return " | ".join(quoted(text) for text in texts)


def quoted(text: str) -> str:
    """A text as GBNF writes it."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'
