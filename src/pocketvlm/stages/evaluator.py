"""The evaluator: the GGUF pairs that would ship, measured on llama.cpp with the prompt and grammar that would ship.

`make` measures and knows no limits; `finish` holds the numbers against the gates and releases. So other gates never
measure again, and a refused model still leaves a report to look at.

Files of the artifact: `metrics.json`, `predictions.jsonl`, `golden/`, and `pictures/` of wrong answers. Times are in
its measurements.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from pocketvlm.artifacts.artifact import Artifact
from pocketvlm.artifacts.run_record import run_id
from pocketvlm.errors import DataError, GateRefused
from pocketvlm.llamacpp.build import read_pin
from pocketvlm.llamacpp.toolchain import find_toolchain
from pocketvlm.report.results import Metrics
from pocketvlm.run_file import Recipe
from pocketvlm.stages.evaluation import gates, pictures
from pocketvlm.stages.evaluation.assemble import assemble, predictions
from pocketvlm.stages.evaluation.bundle import release
from pocketvlm.stages.evaluation.gather import gather
from pocketvlm.stages.evaluation.measure import Images, ask_everybody, pairs
from pocketvlm.stages.stage import Made, Work
from pocketvlm.student.grammar import grammar_text
from pocketvlm.student.prompt import prompt_text

KIND = "reports"
INPUTS = ("labeller", "trainer", "merger", "quantiser")
SHARED = True
FORMAT = 3
"""Raise it when equal inputs give other numbers."""


def settings(recipe: Recipe, folder: Path) -> dict[str, Any]:
    """What is asked and on what; neither gates nor threshold, which are held against the numbers afterwards.

    The bytes of prompt and grammar are in it, so that a version of this program that writes others measures again before it
    releases them. The student's base is part of the trainer's id.
    """
    del folder
    return {
        "format": FORMAT,
        "evaluator": recipe.evaluator.model_dump(mode="json", exclude={"gates", "answer_threshold"}),
        "types": list(recipe.quantiser.types),
        "task": recipe.task.model_dump(mode="json"),
        "classes": list(recipe.task.classes),
        "prompt": prompt_text(recipe.task),
        "grammar": grammar_text(list(recipe.task.classes)),
        "device": recipe.device.model_dump(mode="json"),
        "llama_cpp": read_pin().commit,
    }


def make(work: Work) -> Made | None:
    """Asks everybody and writes the numbers. Raises ToolError, and DataError for a dataset without test images."""
    toolchain, classes = find_toolchain(work.environment), list(work.recipe.task.classes)
    images = Images.read(work.fetch("labeller"), work.recipe)
    if not images.test or not images.validation:
        raise DataError("the dataset has no test or no validation images; give run.labeller.split a share of each")
    answers = ask_everybody(work, toolchain, images)
    if answers is None:
        return None
    clock = time.monotonic()
    files = pairs(work.recipe)
    shipped = [pair.name for pair in files if pair.shipped]
    metrics = assemble(images, answers, files, classes)
    rows = predictions(images, answers, files, classes)
    (work.folder / "metrics.json").write_bytes(metrics.to_bytes())
    (work.folder / "predictions.jsonl").write_text("".join(f"{row.model_dump_json()}\n" for row in rows), newline="\n")
    pictures.write_pictures(work.folder, images.test, rows, shipped)
    places = pictures.golden(rows, shipped, classes, work.recipe.evaluator.golden_images)
    pictures.write_golden(work.folder, images.test, rows, shipped, places)
    if work.recipe.device.canvas_px:
        pictures.write_canvas(work.folder, work.recipe.device.canvas_px)
    for name in metrics.order:
        _say(work, name, metrics)
    return Made(
        facts={
            "accuracy": {name: metrics.types[name].accuracy for name in metrics.order},
            "parity_nats": metrics.parity.max_nats,
            "layout_nats": metrics.layout.max_nats,
        },
        measurements={
            "seconds": round(max(answers.share_seconds) + time.monotonic() - clock, 3),
            "share_seconds": answers.share_seconds,
            "latency": {name: answers.runs[name].latency for name in metrics.order},
        },
        versions={"llama.cpp": toolchain.commit},
    )


def finish(work: Work, artifact: Artifact) -> None:
    """Writes the run's report, then releases; idempotent. Raises GateRefused, which names each failed gate."""
    metrics = Metrics.model_validate_json(artifact.read("metrics.json"))
    results = gates.decide(metrics, work.recipe.evaluator.gates)
    data = gather(work, artifact, metrics, results)
    from pocketvlm.report.render import render_report  # templates are read only here

    work.store.write(f"runs/{run_id(work.recipe)}/report.html", render_report(data).encode())
    refused = gates.refusal(results)
    if refused:
        raise GateRefused(refused)
    released = release(work, artifact, data)
    work.progress.line(f"all {len(results)} gates passed: released {released.name} {released.version}")


def _say(work: Work, name: str, metrics: Metrics) -> None:
    found = metrics.types[name]
    low, high = found.interval
    work.progress.line(f"{name}: accuracy {found.accuracy:.4f} (95 %: {low:.4f} to {high:.4f}) on {found.images} images, "
                       f"agreement with transformers {found.agreement:.4f}")
