"""All that was answered: kept as JSON while the rest is asked, and put together from the shares. No torch."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pocketvlm.phone import Question, Reply
from pocketvlm.stages.sharing import dealt

if TYPE_CHECKING:
    from pocketvlm.stages.evaluation.hf_scoring import HfAnswers

REPLIES = ("test", "validation", "blind", "free")
STEPS = ("first_steps", "exact_steps")


@dataclass(frozen=True)
class PairRun:
    """All that one pair said, to the images of one share or to all."""

    test: list[Reply] = field(default_factory=list)
    validation: list[Reply] = field(default_factory=list)
    blind: list[Reply] = field(default_factory=list)
    """To the grey image of each test image; empty if the pair is not shipped."""
    free: list[Reply] = field(default_factory=list)
    """To the test images without the grammar; empty where answers are few and chosen among."""
    text_ids: list[list[int]] = field(default_factory=list)
    first_steps: list[dict[int, float]] = field(default_factory=list)
    """Of the parity images, if this is the reference."""
    exact_steps: list[dict[int, float]] = field(default_factory=list)
    """The same by the copy of type EXACT."""
    latency: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Answers:
    """All that everybody said."""

    hf: HfAnswers
    runs: dict[str, PairRun]
    base: PairRun
    share_seconds: list[float]
    """What each share took for asking."""
    question: Question
    """What they were asked with."""
    parity_after: str | None
    """As in `Metrics`."""


def write_run(path: Path, run: PairRun) -> None:
    """As JSON: floats survive it exactly."""
    replies = {name: [dict(vars(reply)) for reply in getattr(run, name)] for name in REPLIES}
    steps = {name: [sorted(step.items()) for step in getattr(run, name)] for name in STEPS}
    path.write_text(json.dumps({**replies, **steps, "text_ids": run.text_ids, "latency": run.latency}))


def read_run(path: Path) -> PairRun:
    """What `write_run` wrote."""
    data: dict[str, Any] = json.loads(path.read_text())
    kept: dict[str, Any] = {name: [Reply(**row) for row in data[name]] for name in REPLIES}
    kept |= {name: [dict(step) for step in data[name]] for name in STEPS}
    return PairRun(**kept, text_ids=data["text_ids"], latency=data["latency"])


def join(runs: Sequence[PairRun], test: int, validation: int, parity: Sequence[int]) -> PairRun:
    """The runs of one pair in all shares, as one: of so many images, in their order; `parity` are places in the test images.

    Times are of all images; each was taken in its own pod, beside whatever else ran there.
    """

    def steps(name: str) -> list[dict[int, float]]:
        hands = [iter(getattr(run, name)) for run in runs]
        return [next(hands[place % len(runs)]) for place in parity] if any(getattr(run, name) for run in runs) else []

    def replies(name: str, total: int) -> list[Reply]:
        found = [getattr(run, name) for run in runs]
        return dealt(total, found) if any(found) else []

    asked = replies("test", test)
    own = [run.latency for run in runs if run.latency]
    return PairRun(
        test=asked,
        validation=replies("validation", validation),
        blind=replies("blind", test),
        free=replies("free", test),
        text_ids=next((run.text_ids for run in runs if run.text_ids), []),
        first_steps=steps("first_steps"),
        exact_steps=steps("exact_steps"),
        latency={**_latency(asked), **{name: max(latency[name] for latency in own) for name in own[0]}},
    )


def _latency(replies: Sequence[Reply]) -> dict[str, float]:
    """Milliseconds per image as the server counted them."""
    spans = {
        "prompt_ms": [reply.prompt_ms for reply in replies],
        "answer_ms": [reply.answer_ms for reply in replies],
        "total_ms": [reply.prompt_ms + reply.answer_ms for reply in replies],
    }
    numbers = {}
    for name, values in spans.items():
        numbers[f"{name}_median"] = round(statistics.median(values), 3)
        numbers[f"{name}_p95"] = round(sorted(values)[int(0.95 * (len(values) - 1))], 3)
    return numbers
