"""The evaluator: the GGUF pairs that would ship, measured on llama.cpp with the prompt and grammar that would ship.

`make` measures and knows no limits; `finish` holds the numbers against the gates and releases. So other gates never
measure again, and a refused model still leaves a report to look at.

Files of the artifact: `metrics.json`, `predictions.jsonl`, `prompt.txt` and `grammar.gbnf` as they were asked, `golden/`, and
`pictures/` of wrong answers. Times are in its measurements.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from pocketvlm.artifacts.artifact import Artifact
from pocketvlm.artifacts.run_record import run_id
from pocketvlm.errors import DataError, GateRefused
from pocketvlm.llamacpp.build import read_pin
from pocketvlm.llamacpp.toolchain import find_toolchain
from pocketvlm.phone import Question
from pocketvlm.report.results import Metrics, PairResult, Prediction
from pocketvlm.run_file import Recipe
from pocketvlm.stages.evaluation import gates, pictures
from pocketvlm.stages.evaluation.assemble import assemble, predictions
from pocketvlm.stages.evaluation.beside import find_other
from pocketvlm.stages.evaluation.bundle import release
from pocketvlm.stages.evaluation.gather import gather
from pocketvlm.stages.evaluation.measure import BASE, Images, ask_everybody, pairs
from pocketvlm.stages.stage import Made, Work
from pocketvlm.student.families import geometry_of
from pocketvlm.student.tasks import kind_of

KIND = "reports"
INPUTS = ("labeller", "trainer", "merger", "quantiser")
SHARED = True
FORMAT = 5
"""Raise it when equal inputs give other numbers."""


def settings(recipe: Recipe, folder: Path) -> dict[str, Any]:
    """What is asked and on what; neither gates, threshold nor a run to stand beside, which come to the numbers afterwards.

    The bytes of prompt and grammar follow from the task, the checkpoint's family, and the llama.cpp that makes a grammar of a
    schema; the format in the task's settings rises when they become others. The student's base is part of the trainer's id.
    """
    del folder
    return {
        "format": FORMAT,
        "evaluator": recipe.evaluator.model_dump(mode="json", exclude={"gates", "answer_threshold", "beside"}),
        "types": list(recipe.quantiser.types),
        "task": kind_of(recipe.task).settings(),
        "device": recipe.device.model_dump(mode="json"),
        "llama_cpp": read_pin().commit,
    }


def make(work: Work) -> Made | None:
    """Asks everybody and writes the numbers. Raises ToolError, and DataError for a dataset without test images.

    A run that is to stand beside this one must be there now: hours later is too late to hear that it is not.
    """
    toolchain, recipe = find_toolchain(work.environment), work.recipe
    if recipe.evaluator.beside:
        find_other(work.store, recipe.evaluator.beside)
    images = Images.read(work.fetch("labeller"), recipe)
    if not images.test or not images.validation:
        raise DataError("the dataset has no test or no validation images; give run.labeller.split a share of each")
    answers = ask_everybody(work, toolchain, images)
    if answers is None:
        return None
    clock = time.monotonic()
    family = geometry_of(json.loads(work.inputs["merger"].read("config.json")), "config.json").family
    metrics = assemble(images, answers, recipe, family)
    rows = predictions(images, answers, pairs(recipe))
    _write(work, images, answers.question, metrics, rows)
    for name in metrics.order:
        _say(work, name, metrics.types[name])
    return Made(
        facts={
            "accuracy": {name: metrics.types[name].accuracy for name in metrics.order},
            "parity_nats": metrics.parity.max_nats,
            "layout_nats": metrics.layout.max_nats,
        },
        measurements={
            "seconds": round(max(answers.share_seconds) + time.monotonic() - clock, 3),
            "share_seconds": answers.share_seconds,
            "latency": {**{name: answers.runs[name].latency for name in metrics.order}, BASE: answers.base.latency},
        },
        versions={"llama.cpp": toolchain.commit},
    )


def _write(work: Work, images: Images, question: Question, metrics: Metrics, rows: list[Prediction]) -> None:
    shipped = [name for name in metrics.order if metrics.types[name].shipped]
    (work.folder / "metrics.json").write_bytes(metrics.to_bytes())
    (work.folder / "predictions.jsonl").write_text("".join(f"{row.model_dump_json()}\n" for row in rows), newline="\n")
    (work.folder / "prompt.txt").write_bytes(question.prompt.encode())
    (work.folder / "grammar.gbnf").write_bytes(question.grammar.encode())
    pictures.write_pictures(work.folder, images.test, rows, shipped)
    places = pictures.golden(rows, shipped, metrics.classes, work.recipe.evaluator.golden_images)
    pictures.write_golden(work.folder, images.test, rows, shipped, places)
    if work.recipe.device.canvas_px:
        pictures.write_canvas(work.folder, work.recipe.device.canvas_px)


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


def _say(work: Work, name: str, found: PairResult) -> None:
    low, high = found.interval
    lists = "" if found.list_f1 is None else f", list F1 {found.list_f1:.4f}"
    work.progress.line(f"{name}: accuracy {found.accuracy:.4f} (95 %: {low:.4f} to {high:.4f}) on {found.images} images{lists}, "
                       f"agreement with transformers {found.agreement:.4f}")
