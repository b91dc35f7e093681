"""A report's data without a run: hostile names, wrong answers, refused gates."""

from __future__ import annotations

import io
from typing import Any

import pytest
from PIL import Image

from pocketvlm.artifacts.checkpoint_layout import CurvePoint
from pocketvlm.report.data import FileRow, Refused, ReportData, Times, WrongAnswer
from pocketvlm.report.results import (
    Blind,
    ClassRow,
    Comparison,
    GateResult,
    Measured,
    Metrics,
    PairResult,
    Parity,
    Prediction,
    ReliabilityBin,
)

HOSTILE = ["<script>alert(1)</script>", "a & b | c", '"quoted" {{ 7*7 }}']


def measured(classes: list[str]) -> Measured:
    rows = [ClassRow(name=name, support=10, precision=0.9, recall=0.8, f1=0.847) for name in classes]
    size = len(classes)
    confusion = [[8 if a == b else 1 for b in range(size)] + [0] for a in range(size)]
    bins = [ReliabilityBin(low=0.9333, high=1.0, count=30, confidence=0.97, accuracy=0.8)]
    return Measured(
        images=30, correct=24, accuracy=0.8, interval=(0.627, 0.905), macro_f1=0.847, outside=0, classes=rows,
        confusion=confusion, calibration_error=0.17, bins=bins,
    )  # fmt: skip


def pair(classes: list[str], **changes: Any) -> PairResult:
    values = {
        **measured(classes).model_dump(), "text": "text-q8_0.gguf", "mmproj": "mmproj-q8_0.gguf", "shipped": True,
        "calibration_error_scaled": 0.02, "bins_scaled": [], "agreement": 0.99, "prompt_ids_equal": True,
        "prompt_tokens": (46, 46), "prompt_tokens_wrong": 0, "blind": {"accuracy": 0.1, "answers": {classes[0]: 30}},
    }  # fmt: skip
    return PairResult.model_validate({**values, **changes})


def metrics(classes: list[str], **changes: Any) -> Metrics:
    values: dict[str, Any] = {
        "classes": classes, "images": 30, "images_available": 40, "majority": 0.34, "validation_images": 20, "temperature": 1.7,
        "order": ["q8_0", "bf16"],
        "types": {
            "q8_0": pair(classes),
            "bf16": pair(classes, text="text-bf16.gguf", mmproj="mmproj-f16.gguf", shipped=False, blind=None),
        },
        "transformers": measured(classes), "base": measured(classes),
        "comparisons": [Comparison(first="q8_0", second="bf16", only_first=1, only_second=2, p_value=1.0)],
        "parity": Parity(pair="bf16", images=16, tokens=16, max_nats=0.0043, mean_nats=0.002, max_nats_of_a_token=0.0043),
        "layout": Parity(pair="f32", images=16, tokens=272, max_nats=0.0021, mean_nats=0.001, max_nats_of_a_token=0.0071),
        "blind": Blind(accuracy=0.1, answers={classes[0]: 30}),
    }  # fmt: skip
    return Metrics.model_validate({**values, **changes})


COSTS = {
    "teachers": [{"model": "gpt-4o", "calls": 1240, "input_tokens": 900_000, "output_tokens": 250_000, "usd": 4.75}],
    "usd": 4.75, "usd_per_kept_label": 0.0052,
}  # fmt: skip


def labels(name: str) -> dict[str, Any]:
    """Facts of a dataset that two teachers and a person have labelled."""
    teacher = {"model": name, "models_returned": [name], "votes": 3, "answers": {"answer": 1200, "refused": 3}}
    return {
        "teachers": [teacher, teacher], "agreement": 0.93,
        "second_opinion": {"images": 100, "equal": 90, "confusion": [[name, name, 90], [name, "none", 10]]},
        "corrections": {"images": 40, "right": 38, "accuracy": 0.95, "interval": [0.83, 0.99], "unanswered": 1,
                        "confusion": [[name, name, 38], [name, "none", 2]]},
    }  # fmt: skip


@pytest.fixture
def bare() -> ReportData:
    """Only what a report cannot do without."""
    return ReportData(
        name="digits", run="digits-0123abcd", metrics=metrics(["zero", "one"]), files=[], question="Which?",
        gates=[GateResult(name="min_accuracy", type="q8_0", measured=0.8, limit=0.5, rule="at least", passed=True)],
        prompt="<|im_start|>User:<__media__>Which?<end_of_utterance>\nAssistant:", grammar='root ::= " zero" | " one"\n',
        device={"canvas_px": None, "longest_edge_px": 32, "max_new_tokens": 8}, answer_threshold=0.5,
        parity_definition="gap", layout_definition="rms",
    )  # fmt: skip


@pytest.fixture
def hostile() -> ReportData:
    """Everything that a report can show, in words that try to be markup."""
    evil = HOSTILE[0]
    prediction = Prediction(
        sha256="ab" * 32, source_id=f"folder/{evil}", label=HOSTILE[1], transformers=evil, transformers_confidence=0.9, base=evil,
        answers={"q8_0": evil, "bf16": evil}, confidences={"q8_0": 0.9, "bf16": 0.9},
    )  # fmt: skip
    file = io.BytesIO()
    Image.new("RGB", (32, 32), (200, 30, 90)).save(file, "PNG")
    return ReportData(
        name=evil, run="x-01234567", metrics=metrics(HOSTILE), question=evil, prompt=f"User:{evil}", grammar=f'root ::= "{evil}"',
        gates=[GateResult(name="min_accuracy", type="q8_0", measured=0.8, limit=0.95, rule="at least", passed=False)],
        files=[FileRow("text-q8_0.gguf", 2.4, 8.5, 30, 4), FileRow("mmproj-q8_0.gguf", 1.1, 8.6)],
        device={"canvas_px": 32, "longest_edge_px": 32, "max_new_tokens": 8}, answer_threshold=0.5,
        parity_definition=evil, layout_definition=evil,
        counts={"train": dict.fromkeys(HOSTILE, 70), "test": dict.fromkeys(HOSTILE, 10)}, images_total=243, near_copy_groups=2,
        labels=labels(evil),
        quarantine=[Refused("not_an_image", 3, f"{evil}.jpg", f"cannot identify {evil}")],
        curve=[CurvePoint(phase=0, step=s, epoch=s / 10, loss=2 / (s + 1), validation_accuracy=s / 20) for s in range(20)],
        phases=["phase 1: all weights"], wrong=[WrongAnswer(prediction, file.getvalue()), WrongAnswer(prediction, None)],
        wrong_total=40, provenance=[("base", evil), ("llama.cpp", "0c1e5709")],
        times=Times(
            {"q8_0": {"total_ms_median": 6.4, "total_ms_p95": 9.9, "threads": 1}},
            {"trainer": {"seconds": {"training": 61.0}}, "labeller": {"costs": COSTS}},
        ),
    )  # fmt: skip
