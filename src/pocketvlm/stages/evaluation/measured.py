"""From one answerer's answers to its numbers. Answers and labels are texts, as `Said.label` has them."""

from __future__ import annotations

import dataclasses
import statistics
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pocketvlm.intervals import wilson
from pocketvlm.phone import Reply
from pocketvlm.report.results import Blind, ClassRow, Measured, PairResult, ReliabilityBin, Tokens, Written
from pocketvlm.stages.evaluation import fields, metrics
from pocketvlm.stages.evaluation.answers import PairRun
from pocketvlm.student.tasks import TaskKind

if TYPE_CHECKING:
    from pocketvlm.stages.evaluation.hf_scoring import HfAnswers
    from pocketvlm.stages.evaluation.measure import PairFiles

DIGITS = 6
"""Published numbers are rounded to this many digits."""
Said = Sequence[str | None]


def transformers_result(kind: TaskKind, labels: Sequence[str], answers: HfAnswers) -> Measured:
    """Of the merged model by transformers."""
    said = [answer.label for answer in answers.merged]
    sure = [answer.confidence for answer in answers.merged if answer.confidence is not None]
    values = _common(kind, labels, said, sure if len(sure) == len(said) else None)
    tokens = [answer.tokens for answer in answers.merged if answer.tokens is not None]
    if not kind.closed:
        free = _share(sum(answer is not None for answer in said), len(said))
        values |= {"written": Written(
            valid=None, valid_free=free, unread=None, unread_free=said.count(None), accuracy_free=values["accuracy"],
        )}  # fmt: skip
    return Measured(**values, tokens=_tokens(tokens) if tokens else None)


def run_result(kind: TaskKind, labels: Sequence[str], run: PairRun) -> Measured:
    """Of a pair on llama-server."""
    return Measured(**_of_run(kind, labels, run))


def pair_result(
    kind: TaskKind, labels: Sequence[str], pair: PairFiles, run: PairRun, answers: HfAnswers, temperature: float | None
) -> PairResult:
    """The same with what only a pair of the trained model has."""
    said, tokens = [reply.label for reply in run.test], [reply.prompt_tokens for reply in run.test]
    alike = sum(a is not None and a == b.label for a, b in zip(said, answers.merged, strict=True))
    scaled: dict[str, Any] = {}
    if temperature is not None:
        right = [a == label for a, label in zip(said, labels, strict=True)]
        sure = [reply.confidence(temperature) for reply in run.test]
        error = round(metrics.expected_calibration_error(sure, right), DIGITS)
        scaled = {"calibration_error_scaled": error, "bins_scaled": _bins(sure, right)}
    return PairResult(
        **_of_run(kind, labels, run), **scaled, text=pair.text, mmproj=pair.mmproj, shipped=pair.shipped,
        agreement=_share(alike, len(said)), prompt_ids_equal=run.text_ids == answers.text_ids,
        prompt_tokens=(min(tokens), max(tokens)),
        prompt_tokens_wrong=sum(a != b for a, b in zip(tokens, answers.prompt_tokens, strict=True)),
        blind=_blind(run, labels) if run.blind else None,
    )  # fmt: skip


def _of_run(kind: TaskKind, labels: Sequence[str], run: PairRun) -> dict[str, Any]:
    said = [reply.label for reply in run.test]
    values = _common(kind, labels, said, [reply.confidence() for reply in run.test])
    values["tokens"] = _tokens([reply.answer_tokens for reply in run.test])
    if not kind.closed:
        values["written"] = _written(labels, run)
    return values


def _common(kind: TaskKind, labels: Sequence[str], said: Said, confidences: Sequence[float] | None) -> dict[str, Any]:
    right = [answer == label for answer, label in zip(said, labels, strict=True)]
    low, high = wilson(sum(right), len(right))
    values: dict[str, Any] = {
        "images": len(labels), "correct": sum(right), "accuracy": _share(sum(right), len(right)),
        "interval": (round(low, DIGITS), round(high, DIGITS)), "outside": sum(answer is None for answer in said),
    }  # fmt: skip
    if kind.classes:
        values |= _by_class(kind.classes, labels, said)
        if confidences is not None:
            error = round(metrics.expected_calibration_error(confidences, right), DIGITS)
            values |= {"calibration_error": error, "bins": _bins(confidences, right)}
    else:
        values["fields"] = fields.field_rows(kind.task.fields, labels, said)
        values["list_f1"] = fields.all_lists(kind.task.fields, labels, said)
    return values


def _by_class(classes: Sequence[str], labels: Sequence[str], said: Said) -> dict[str, Any]:
    places = {name: place for place, name in enumerate(classes)}
    answers = [None if answer is None else places[answer] for answer in said]
    counts = metrics.confusion([places[label] for label in labels], answers, len(classes))
    scores = metrics.per_class(counts)
    rows = [
        ClassRow(name=name, support=score.support, precision=round(score.precision, DIGITS),
                 recall=round(score.recall, DIGITS), f1=round(score.f1, DIGITS))
        for name, score in zip(classes, scores, strict=True)
    ]  # fmt: skip
    return {"macro_f1": round(sum(score.f1 for score in scores) / len(scores), DIGITS), "classes": rows, "confusion": counts}


def _written(labels: Sequence[str], run: PairRun) -> Written:
    unread = sum(reply.label is None for reply in run.test)
    unread_free = sum(reply.label is None for reply in run.free)
    right_free = sum(reply.label == label for reply, label in zip(run.free, labels, strict=True))
    return Written(
        valid=_share(len(run.test) - unread, len(run.test)), valid_free=_share(len(run.free) - unread_free, len(run.free)),
        unread=unread, unread_free=unread_free, accuracy_free=_share(right_free, len(run.free)),
    )  # fmt: skip


def _tokens(counts: Sequence[int]) -> Tokens:
    ordered = sorted(counts)
    return Tokens(median=statistics.median(ordered), p95=ordered[int(0.95 * (len(ordered) - 1))], most=ordered[-1])


def _bins(confidences: Sequence[float], right: Sequence[bool]) -> list[ReliabilityBin]:
    return [
        ReliabilityBin(**{name: round(value, DIGITS) for name, value in dataclasses.asdict(found).items()})
        for found in metrics.reliability(confidences, right)
    ]


def _blind(run: PairRun, labels: Sequence[str]) -> Blind:
    right = sum(reply.label == label for reply, label in zip(run.blind, labels, strict=True))
    return Blind(accuracy=_share(right, len(labels)), answers=dict(Counter(shown(reply) for reply in run.blind)))


def shown(reply: Reply) -> str:
    """What an answer says, or what was written where that is no answer."""
    return reply.text.strip() if reply.label is None else reply.label


def _share(count: int, total: int) -> float:
    return round(count / total, DIGITS)
