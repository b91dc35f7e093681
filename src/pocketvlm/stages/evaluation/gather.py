"""Gathers what a report shows from the artifacts of a run."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

from pocketvlm.artifacts.artifact import Artifact
from pocketvlm.artifacts.checkpoint_layout import CURVE, TRAINING, CurvePoint, Training
from pocketvlm.artifacts.dataset import QUARANTINE, SPLITS
from pocketvlm.artifacts.run_record import run_id
from pocketvlm.llamacpp.build import read_pin
from pocketvlm.report.data import FileRow, Refused, ReportData, Times, WrongAnswer
from pocketvlm.report.results import GateResult, Metrics, Prediction
from pocketvlm.run_file import Recipe
from pocketvlm.stages.evaluation import parity
from pocketvlm.stages.evaluation.beside import find_other
from pocketvlm.stages.evaluation.gates import parity_limit
from pocketvlm.stages.evaluation.pictures import WRONG_SHOWN, picture_name, wrong
from pocketvlm.stages.stage import Work
from pocketvlm.student.base import display_name

LABEL_FACTS = ("teachers", "agreement", "field_agreement", "second_opinion", "corrections")
"""What the labeller says of how its labels came about."""


def gather(work: Work, report: Artifact, metrics: Metrics, gates: list[GateResult]) -> ReportData:
    """Reads small files only: metrics, predictions, pictures, audit, curve, quarantine."""
    recipe, dataset = work.recipe, work.inputs["labeller"]
    shown, total = _wrong(report, metrics)
    definition, layout_definition = parity.definitions(metrics.parity_after)
    other = find_other(work.store, recipe.evaluator.beside) if recipe.evaluator.beside else None
    return ReportData(
        name=recipe.name,
        run=run_id(recipe),
        metrics=metrics,
        gates=gates,
        files=_files(work.inputs["quantiser"]),
        question=recipe.task.question,
        prompt=report.read("prompt.txt").decode(),
        grammar=report.read("grammar.gbnf").decode(),
        device=recipe.device.model_dump(),
        answer_threshold=recipe.evaluator.answer_threshold,
        parity_definition=definition,
        layout_definition=layout_definition,
        parity_limit=parity_limit(metrics, recipe.evaluator.gates),
        beside=other.compare(run_id(recipe), metrics, report) if other else None,
        counts={split: counts[split] for split in SPLITS if split in (counts := dataset.facts.get("counts", {}))},
        images_total=dataset.facts.get("images_total", 0),
        near_copy_groups=dataset.facts.get("near_copy_groups", 0),
        labels={name: dataset.facts[name] for name in LABEL_FACTS if name in dataset.facts},
        quarantine=_quarantine(dataset),
        curve=_curve(work.inputs["trainer"]),
        phases=_phases(work.inputs["trainer"], recipe),
        wrong=shown,
        wrong_total=total,
        provenance=_provenance(work, report),
        times=_times(work, report, other.latency() if other else {}),
    )


def _has(artifact: Artifact, name: str) -> bool:
    return any(entry.name == name for entry in artifact.files)


def _wrong(report: Artifact, metrics: Metrics) -> tuple[list[WrongAnswer], int]:
    lines = report.read("predictions.jsonl").splitlines()
    predictions = [Prediction.model_validate_json(line) for line in lines]
    places = wrong(predictions, [name for name in metrics.order if metrics.types[name].shipped])
    chosen = [predictions[place] for place in places[:WRONG_SHOWN]]
    return [WrongAnswer(p, report.read(picture_name(p)) if _has(report, picture_name(p)) else None) for p in chosen], len(places)


def _files(quantiser: Artifact) -> list[FileRow]:
    rows: list[dict[str, Any]] = json.loads(quantiser.read("audit.json"))["files"]
    return [
        FileRow(row["name"], row["size_mb"], row.get("bits_per_weight", 0.0), row.get("matrices", 0), row.get("fallbacks", 0))
        for row in rows
    ]


def _quarantine(dataset: Artifact) -> list[Refused]:
    if not _has(dataset, QUARANTINE):
        return []
    rows = [json.loads(line) for line in dataset.read(QUARANTINE).splitlines()]
    first = {row["reason"]: row for row in reversed(rows)}
    counts = Counter(row["reason"] for row in rows)
    return [
        Refused(reason, count, first[reason]["source_id"], first[reason]["detail"])
        for reason, count in sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    ]


def _curve(trainer: Artifact) -> list[CurvePoint]:
    if not _has(trainer, CURVE):
        return []
    return [CurvePoint.model_validate_json(line) for line in trainer.read(CURVE).splitlines()]


def _phases(trainer: Artifact, recipe: Recipe) -> list[str]:
    done = Training.model_validate_json(trainer.read(TRAINING)) if _has(trainer, TRAINING) else None
    lines = []
    for number, phase in enumerate(recipe.trainer.phases, start=1):
        how = f"LoRA, rank {phase.rank}" if phase.method == "lora" else "all weights"
        parts, rate = ", ".join(phase.train), f"{phase.learning_rate:g}, {phase.schedule}"
        lines.append(f"phase {number}: {how} of {parts}; {phase.epochs:g} epochs at {rate}")
    if done:
        lines.append(f"batches of {recipe.trainer.batch_size}, {done.precision}, seed {recipe.trainer.seed}")
    return lines


def _provenance(work: Work, report: Artifact) -> list[tuple[str, str]]:
    recipe = work.recipe
    artifacts = [*work.inputs.values(), report]
    versions: dict[str, str] = {}
    for artifact in artifacts:
        versions |= artifact.manifest.versions
    name = base_name(work)
    base = f"{name} at {recipe.student.revision}" if recipe.student.revision else name
    return [
        ("base", base),
        *((artifact.kind, artifact.id) for artifact in artifacts),
        ("llama.cpp", read_pin().commit),
        *((name, version) for name, version in sorted(versions.items()) if name != "llama.cpp"),
    ]


def base_name(work: Work) -> str:
    """The student's base without the folder of this machine."""
    return display_name(work.recipe.student, work.recipe_folder)


def _times(work: Work, report: Artifact, beside: dict[str, float]) -> Times:
    stages = {name: artifact.measurements() for name, artifact in work.inputs.items()}
    own = report.measurements()
    return Times(latency=own.get("latency", {}), stages={**stages, "evaluator": own}, beside=beside)
