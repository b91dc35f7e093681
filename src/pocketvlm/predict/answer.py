"""What a model says of one image."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

Value = str | dict[str, Any]
"""A class name; or the fields of an `extract` task."""


@dataclass(frozen=True)
class Prediction:
    """The answer to one image, or why there is none."""

    image: str
    """As it was named: a path, or what stands for an image without one."""
    answer: Value | None = None
    """What an app should show: `best`, or None where the model is less sure than the release's answer threshold."""
    best: Value | None = None
    """What the model said, however sure it is; None where that is no answer of the task."""
    confidence: float | None = None
    """0..1, by the temperature of the release."""
    ms: float | None = None
    """What the pair took for prompt, image and answer."""
    reason: str | None = None
    """Of a task that reasons."""
    text: str | None = None
    """What the model wrote, letter by letter."""
    error: str | None = None
    """Why the image has no answer; everything else is None then."""

    @property
    def unsure(self) -> bool:
        """There is an answer, and it is not to be shown."""
        return self.error is None and self.answer is None

    def __str__(self) -> str:
        if self.error is not None:
            return f"error: {self.error}"
        said = written(self.text if self.best is None else self.best)
        return said if self.answer is not None else f"? ({said})"


def written(value: Value | None) -> str:
    """A value as one text: fields as compact JSON."""
    if value is None or isinstance(value, str):
        return value or ""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
