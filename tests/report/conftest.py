"""A report's data without a run: hostile names, wrong answers, refused gates."""

from __future__ import annotations

import dataclasses
import io
import json
from typing import Any

import pytest
from PIL import Image

from pocketvlm.artifacts.checkpoint_layout import CurvePoint
from pocketvlm.report.data import Beside, FileRow, Refused, ReportData, Side, Times, WrongAnswer
from pocketvlm.report.results import (
    Blind,
    ClassRow,
    Comparison,
    FieldRow,
    GateResult,
    ListScore,
    Measured,
    Metrics,
    PairResult,
    Parity,
    Prediction,
    ReliabilityBin,
    Tokens,
    Written,
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
        "kind": "classify", "answer": "label", "family": "SmolVLM", "device_exact": True, "base_types": ("q8_0", "q8_0"),
        "parity_after": None, "similarity": None,
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
        sha256="ab" * 32, source_id=f"folder/{evil}", label=HOSTILE[1], transformers=evil, transformers_label=evil,
        transformers_confidence=0.9, base=evil, base_label=None, answers={"q8_0": evil, "bf16": evil},
        labels={"q8_0": evil, "bf16": evil}, confidences={"q8_0": 0.9, "bf16": 0.9},
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


def picture() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (96, 96), (90, 140, 60)).save(file, "PNG")
    return file.getvalue()


LATENCY = {"prompt_ms_median": 210.0, "answer_ms_median": 640.0, "total_ms_median": 850.0, "total_ms_p95": 990.0, "threads": 2}
WRITTEN = Written(valid=0.99, valid_free=0.97, unread=1, unread_free=3, accuracy_free=0.8)
TOKENS = Tokens(median=42.5, p95=61, most=70)


def fields(evil: str, better: float) -> list[FieldRow]:
    """What a model finds of food, better or worse."""
    score = ListScore(precision=better, recall=better, f1=better, f1_macro=better - 0.02)
    raw = score.model_copy(update={"f1": better - 0.05})
    return [
        FieldRow(name="is_food", type="integer", accuracy=better),
        FieldRow(name=evil, type="string", accuracy=0.4, similarity=better),
        FieldRow(name="food_items", type="list", accuracy=0.7, list=score, list_raw=raw),
    ]  # fmt: skip


@pytest.fixture
def extracted(bare: ReportData) -> ReportData:
    """A model that fills fields in: no class, no temperature, a family that is not device-exact."""
    evil = HOSTILE[0]

    def of(better: float, written: Written = WRITTEN, **more: Any) -> dict[str, Any]:
        return {"images": 30, "correct": 24, "accuracy": 0.8, "interval": (0.627, 0.905), "outside": 1, "list_f1": better,
                "fields": fields(evil, better), "written": written, "tokens": TOKENS, **more}  # fmt: skip

    def answer(title: str, *items: str) -> str:
        return json.dumps({"is_food": 1, evil: title, "food_items": items})

    free = Written(valid=None, valid_free=1.0, unread=None, unread_free=0, accuracy_free=0.81)
    pair_of = {"mmproj": "mmproj-q8_0.gguf", "agreement": 0.97, "prompt_ids_equal": True, "prompt_tokens": (150, 160),
               "prompt_tokens_wrong": 0}  # fmt: skip
    found = bare.metrics.model_copy(update={
        "kind": "extract", "answer": "fields", "family": evil, "device_exact": False, "classes": [], "majority": None,
        "temperature": None, "parity_after": f' {{"{evil}":', "similarity": "chrF2 by sacrebleu 2.6.0",
        "types": {
            "q8_0": PairResult(**of(0.91), **pair_of, text="text-q8_0.gguf", shipped=True, blind=Blind(accuracy=0.1, answers={})),
            "bf16": PairResult(**of(0.92), **pair_of, text="text-bf16.gguf", shipped=False),
        },
        "transformers": Measured(**of(0.92, free)),
        "base": Measured(**of(0.12, Written(valid=1.0, valid_free=0.02, unread=0, unread_free=29, accuracy_free=0.0))),
    })  # fmt: skip
    rows = [("rice and beans", ("rice", "corn")), ("a cup of tea", ("tea",))]
    wrong = [
        Prediction(
            sha256=f"{i:064x}", source_id=f"plates/{i}.png", label=answer("rice and beans", "rice", "beans"), transformers="",
            transformers_label=None, transformers_confidence=None, base="{", base_label=None,
            answers={"q8_0": answer(title, *items)[: None if i else 30], "bf16": ""},
            labels={"q8_0": answer(title, *items) if i else None, "bf16": None}, confidences={"q8_0": 0.71, "bf16": 0.5},
        )
        for i, (title, items) in enumerate(rows)
    ]  # fmt: skip
    return dataclasses.replace(
        bare, name="food", metrics=found, gates=[
            GateResult(name=name, type="q8_0", measured=0.97, limit=0.8, rule="at least", passed=True)
            for name in ("min_accuracy", "min_valid", "min_valid_free", "min_field_accuracy", "min_list_f1")
        ],
        wrong=[WrongAnswer(prediction, picture()) for prediction in wrong], wrong_total=2,
        question='What is on the plate? Answer with JSON like {"is_food":1,"image_title":"soup","food_items":["carrot"]}',
        counts={"train": {"images": 210}, "test": {"images": 30}}, grammar='root ::= " {" is-food-kv "," food-items-kv "}"\n',
        times=Times({"q8_0": LATENCY, "bf16": LATENCY, "base": LATENCY}), files=[
            FileRow("text-q8_0.gguf", 435.3, 8.5, 225, 0), FileRow("mmproj-q8_0.gguf", 108.8, 8.6),
            FileRow("text-bf16.gguf", 820.0, 16.0),
        ],
    )  # fmt: skip


@pytest.fixture
def reasoned(hostile: ReportData) -> ReportData:
    """A model that gives its reasons, beside one that does not."""
    types = {name: pair.model_copy(update={"written": WRITTEN, "tokens": TOKENS}) for name, pair in hostile.metrics.types.items()}
    free = Written(valid=None, valid_free=0.98, unread=None, unread_free=1, accuracy_free=0.8)
    found = hostile.metrics.model_copy(update={
        "answer": "reasoning", "types": types, "transformers": hostile.metrics.transformers.model_copy(update={"written": free}),
        "base": hostile.metrics.base.model_copy(update={"written": WRITTEN, "tokens": TOKENS}),
    })  # fmt: skip
    text = f"Reasoning: The glass is cracked in two places, {HOSTILE[0]}.\nAnswer: {HOSTILE[1]}"
    prediction = hostile.wrong[0].prediction.model_copy(update={"answers": {"q8_0": text, "bf16": text}})
    return dataclasses.replace(
        hostile, name="solar-reasons", metrics=found, wrong=[WrongAnswer(prediction, picture())] * 3,
        beside=Beside(
            Side("solar-reasons-0123abcd", "q8_0", "reasoning", 0.83, 4, 160, 42.5),
            Side("solar-4567cdef", "q8_0", "label", 0.8, 3, 148, 3.0), 30, (-0.08, 0.14), 0.69,
        ),
        times=Times({"q8_0": LATENCY}, hostile.times.stages if hostile.times else {}, {**LATENCY, "answer_ms_median": 48.0}),
    )  # fmt: skip
