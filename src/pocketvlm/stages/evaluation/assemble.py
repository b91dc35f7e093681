"""From all answers to the numbers: `Metrics`, and one `Prediction` for each test image."""

from __future__ import annotations

import dataclasses
import itertools
from collections import Counter
from collections.abc import Sequence

from pocketvlm.intervals import wilson
from pocketvlm.report.results import Blind, ClassRow, Comparison, Measured, Metrics, PairResult, Prediction, ReliabilityBin
from pocketvlm.stages.evaluation import metrics, parity
from pocketvlm.stages.evaluation.answers import Answers, PairRun
from pocketvlm.stages.evaluation.measure import EXACT, Images, PairFiles

DIGITS = 6
"""Published numbers are rounded to this many digits."""
TRANSFORMERS = "transformers"


def assemble(images: Images, answers: Answers, files: Sequence[PairFiles], classes: Sequence[str]) -> Metrics:
    """All numbers of an evaluation."""
    labels = _labels([example.label for example in images.test], classes)
    temperature = _temperature(images, answers, files, classes)
    hf = [answer.index for answer in answers.hf.merged]
    types = {
        pair.name: _pair_result(pair, answers.runs[pair.name], labels, hf, answers.hf.prompt_tokens, answers.hf.text_ids,
                                classes, temperature)
        for pair in files
    }  # fmt: skip
    (reference,) = (pair.name for pair in files if pair.reference)
    expected = [answers.hf.merged[place].first_step for place in images.parity]
    counts = Counter(labels)
    return Metrics(
        classes=list(classes), images=len(labels), images_available=images.available,
        majority=round(max(counts.values()) / len(labels), DIGITS), validation_images=len(images.validation),
        temperature=round(temperature, DIGITS), order=[pair.name for pair in files], types=types,
        transformers=_measured(labels, hf, [answer.confidence for answer in answers.hf.merged], classes),
        base=_measured(labels, [a.index for a in answers.hf.base], [a.confidence for a in answers.hf.base], classes),
        comparisons=_comparisons(labels, answers, files),
        parity=parity.compare_answers(reference, answers.runs[reference].first_steps, expected),
        layout=parity.compare_layout(EXACT, answers.runs[reference].exact_steps, expected),
        blind=max((result.blind for result in types.values() if result.blind), key=lambda blind: blind.accuracy),
    )  # fmt: skip


def _labels(names: Sequence[str], classes: Sequence[str]) -> list[int]:
    places = {name: place for place, name in enumerate(classes)}
    return [places[name] for name in names]


def _temperature(images: Images, answers: Answers, files: Sequence[PairFiles], classes: Sequence[str]) -> float:
    labels = _labels([example.label for example in images.validation], classes)
    said = [(reply, label) for pair in files if pair.shipped
            for reply, label in zip(answers.runs[pair.name].validation, labels, strict=True) if reply.choices]  # fmt: skip
    return metrics.fit_temperature([reply.choices for reply, _ in said], [reply.index == label for reply, label in said])


def _measured(
    labels: Sequence[int], answers: Sequence[int | None], confidences: Sequence[float], classes: Sequence[str]
) -> Measured:
    right = [answer == label for answer, label in zip(answers, labels, strict=True)]
    counts = metrics.confusion(labels, answers, len(classes))
    scores = metrics.per_class(counts)
    low, high = wilson(sum(right), len(right))
    rows = [
        ClassRow(name=name, support=score.support, precision=round(score.precision, DIGITS),
                 recall=round(score.recall, DIGITS), f1=round(score.f1, DIGITS))
        for name, score in zip(classes, scores, strict=True)
    ]  # fmt: skip
    return Measured(
        images=len(labels), correct=sum(right), accuracy=round(sum(right) / len(right), DIGITS),
        interval=(round(low, DIGITS), round(high, DIGITS)),
        macro_f1=round(sum(score.f1 for score in scores) / len(scores), DIGITS),
        outside=sum(answer is None for answer in answers), classes=rows, confusion=counts,
        calibration_error=round(metrics.expected_calibration_error(confidences, right), DIGITS), bins=_bins(confidences, right),
    )  # fmt: skip


def _bins(confidences: Sequence[float], right: Sequence[bool]) -> list[ReliabilityBin]:
    return [
        ReliabilityBin(**{name: round(value, DIGITS) for name, value in dataclasses.asdict(found).items()})
        for found in metrics.reliability(confidences, right)
    ]


def _pair_result(
    pair: PairFiles, run: PairRun, labels: Sequence[int], hf: Sequence[int], expected_tokens: Sequence[int],
    expected_ids: list[list[int]], classes: Sequence[str], temperature: float,
) -> PairResult:  # fmt: skip
    answers = [reply.index for reply in run.test]
    right = [answer == label for answer, label in zip(answers, labels, strict=True)]
    scaled = [reply.confidence(temperature) for reply in run.test]
    tokens = [reply.prompt_tokens for reply in run.test]
    measured = _measured(labels, answers, [reply.confidence() for reply in run.test], classes)
    return PairResult(
        **measured.model_dump(), text=pair.text, mmproj=pair.mmproj, shipped=pair.shipped,
        calibration_error_scaled=round(metrics.expected_calibration_error(scaled, right), DIGITS),
        bins_scaled=_bins(scaled, right),
        agreement=round(sum(a == b for a, b in zip(answers, hf, strict=True)) / len(hf), DIGITS),
        prompt_ids_equal=run.text_ids == expected_ids, prompt_tokens=(min(tokens), max(tokens)),
        prompt_tokens_wrong=sum(a != b for a, b in zip(tokens, expected_tokens, strict=True)),
        blind=_blind(run, labels) if run.blind else None,
    )  # fmt: skip


def _blind(run: PairRun, labels: Sequence[int]) -> Blind:
    right = sum(reply.index == label for reply, label in zip(run.blind, labels, strict=True))
    return Blind(accuracy=round(right / len(labels), DIGITS), answers=dict(Counter(reply.text.strip() for reply in run.blind)))


def _comparisons(labels: Sequence[int], answers: Answers, files: Sequence[PairFiles]) -> list[Comparison]:
    said: dict[str, list[int | None]] = {pair.name: [reply.index for reply in answers.runs[pair.name].test] for pair in files}
    said[TRANSFORMERS] = [answer.index for answer in answers.hf.merged]
    right = {name: [a == label for a, label in zip(given, labels, strict=True)] for name, given in said.items()}
    found = []
    for first, second in itertools.combinations(right, 2):
        only_first = sum(a and not b for a, b in zip(right[first], right[second], strict=True))
        only_second = sum(b and not a for a, b in zip(right[first], right[second], strict=True))
        found.append(Comparison(
            first=first, second=second, only_first=only_first, only_second=only_second,
            p_value=round(metrics.mcnemar(only_first, only_second), DIGITS),
        ))  # fmt: skip
    return found


def predictions(images: Images, answers: Answers, files: Sequence[PairFiles], classes: Sequence[str]) -> list[Prediction]:
    """One for each test image, in the dataset's order."""
    rows = []
    for place, example in enumerate(images.test):
        merged, untrained = answers.hf.merged[place], answers.hf.base[place]
        replies = {pair.name: answers.runs[pair.name].test[place] for pair in files}
        rows.append(Prediction(
            sha256=example.sha256, source_id=example.source_id, label=example.label, transformers=classes[merged.index],
            transformers_confidence=round(merged.confidence, DIGITS), base=classes[untrained.index],
            answers={name: reply.text.removeprefix(" ") for name, reply in replies.items()},
            confidences={name: round(reply.confidence(), DIGITS) for name, reply in replies.items()},
        ))  # fmt: skip
    return rows
