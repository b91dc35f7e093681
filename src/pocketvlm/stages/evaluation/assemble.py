"""From all answers to the numbers: `Metrics`, and one `Prediction` for each test image."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence

from pocketvlm.intervals import mcnemar
from pocketvlm.report.results import Comparison, Metrics, Parity, Prediction
from pocketvlm.run_file import Recipe
from pocketvlm.stages.evaluation import fields, metrics, parity
from pocketvlm.stages.evaluation.answers import Answers
from pocketvlm.stages.evaluation.measure import BASE, EXACT, TRANSFORMERS, Images, PairFiles, pairs
from pocketvlm.stages.evaluation.measured import DIGITS, pair_result, run_result, transformers_result
from pocketvlm.student.families import Family
from pocketvlm.student.tasks import kind_of


def assemble(images: Images, answers: Answers, recipe: Recipe, family: Family) -> Metrics:
    """All numbers of an evaluation."""
    kind, files = kind_of(recipe.task), pairs(recipe)
    labels = [example.label for example in images.test]
    temperature = _temperature(images, answers, files) if kind.classes else None
    types = {pair.name: pair_result(kind, labels, pair, answers.runs[pair.name], answers.hf, temperature) for pair in files}
    near, layout = _parities(images, answers, files)
    free_texts = any(map(fields.is_free_text, kind.task.fields.values()))
    return Metrics(
        kind=kind.task.kind, answer=kind.task.answer if kind.classes else "fields", family=family.name,
        device_exact=family.device_exact, classes=kind.classes, images=len(labels), images_available=images.available,
        majority=round(max(Counter(labels).values()) / len(labels), DIGITS) if kind.classes else None,
        validation_images=len(images.validation), temperature=None if temperature is None else round(temperature, DIGITS),
        order=[pair.name for pair in files], types=types, transformers=transformers_result(kind, labels, answers.hf),
        base=run_result(kind, labels, answers.base), base_types=(recipe.quantiser.types[0], recipe.quantiser.mmproj),
        comparisons=_comparisons(labels, answers, files), parity=near, layout=layout, parity_after=answers.parity_after,
        similarity=fields.similarity_name() if free_texts else None,
        blind=max((result.blind for result in types.values() if result.blind), key=lambda blind: blind.accuracy),
    )  # fmt: skip


def _temperature(images: Images, answers: Answers, files: Sequence[PairFiles]) -> float:
    labels = [example.label for example in images.validation]
    said = [(reply, label) for pair in files if pair.shipped
            for reply, label in zip(answers.runs[pair.name].validation, labels, strict=True) if reply.choices]  # fmt: skip
    return metrics.fit_temperature([reply.choices for reply, _ in said], [reply.label == label for reply, label in said])


def _parities(images: Images, answers: Answers, files: Sequence[PairFiles]) -> tuple[Parity, Parity]:
    (reference,) = (pair.name for pair in files if pair.reference)
    run = answers.runs[reference]
    expected = [answers.hf.merged[place].first_step for place in images.parity]
    steps = [run.first_steps, run.exact_steps]
    first, exact = steps if answers.parity_after is None else (parity.of_written(found, expected) for found in steps)
    return parity.compare_answers(reference, first, expected), parity.compare_layout(EXACT, exact, expected)


def _comparisons(labels: Sequence[str], answers: Answers, files: Sequence[PairFiles]) -> list[Comparison]:
    said = {pair.name: [reply.label for reply in answers.runs[pair.name].test] for pair in files}
    said[TRANSFORMERS] = [answer.label for answer in answers.hf.merged]
    said[BASE] = [reply.label for reply in answers.base.test]
    right = {name: [a == label for a, label in zip(given, labels, strict=True)] for name, given in said.items()}
    found = []
    for first, second in itertools.combinations(right, 2):
        only_first = sum(a and not b for a, b in zip(right[first], right[second], strict=True))
        only_second = sum(b and not a for a, b in zip(right[first], right[second], strict=True))
        found.append(Comparison(
            first=first, second=second, only_first=only_first, only_second=only_second,
            p_value=round(mcnemar(only_first, only_second), DIGITS),
        ))  # fmt: skip
    return found


def predictions(images: Images, answers: Answers, files: Sequence[PairFiles]) -> list[Prediction]:
    """One for each test image, in the dataset's order."""
    lead, rows = answers.question.lead, []
    for place, example in enumerate(images.test):
        merged, untrained = answers.hf.merged[place], answers.base.test[place]
        replies = {pair.name: answers.runs[pair.name].test[place] for pair in files}
        sure = merged.confidence
        rows.append(Prediction(
            sha256=example.sha256, source_id=example.source_id, label=example.label, transformers=merged.text,
            transformers_label=merged.label, transformers_confidence=None if sure is None else round(sure, DIGITS),
            base=untrained.text.removeprefix(lead), base_label=untrained.label,
            answers={name: reply.text.removeprefix(lead) for name, reply in replies.items()},
            labels={name: reply.label for name, reply in replies.items()},
            confidences={name: round(reply.confidence(), DIGITS) for name, reply in replies.items()},
        ))  # fmt: skip
    return rows
