"""Every gate is red on the fault that it is there for, and green otherwise."""

from __future__ import annotations

from typing import Any

import pytest

from pocketvlm.report.results import Metrics
from pocketvlm.run_file import Gates
from pocketvlm.stages.evaluation.gates import decide, refusal, sight

ROW = {"name": "a", "support": 50, "precision": 0.9, "recall": 0.9, "f1": 0.9}
MEASURED: dict[str, Any] = {
    "images": 100, "correct": 95, "accuracy": 0.95, "interval": (0.888, 0.978), "macro_f1": 0.95, "outside": 0, "classes": [ROW],
    "confusion": [[95, 5]], "calibration_error": 0.05, "bins": [],
}  # fmt: skip
PAIR = {
    **MEASURED, "text": "text-q8_0.gguf", "mmproj": "mmproj-q8_0.gguf", "shipped": True, "calibration_error_scaled": 0.01,
    "bins_scaled": [], "agreement": 1.0, "prompt_ids_equal": True, "prompt_tokens": (46, 46), "prompt_tokens_wrong": 0,
    "blind": {"accuracy": 0.1, "answers": {"a": 100}},
}  # fmt: skip
REFERENCE = {**PAIR, "shipped": False, "blind": None}
GATES = Gates(
    min_accuracy=0.9, max_drop=0.02, min_agreement=0.98, max_parity_nats=0.01, max_expected_calibration_error=0.05
)


def nats(pair: str, worst: float) -> dict[str, Any]:
    return {"pair": pair, "images": 16, "tokens": 16, "max_nats": worst, "mean_nats": 0.002, "max_nats_of_a_token": 0.01}


def metrics(
    pair: dict[str, Any] | None = None, reference: dict[str, Any] | None = None, parity: float = 0.005, layout: float = 0.003,
    **changes: Any,
) -> Metrics:  # fmt: skip
    return Metrics.model_validate({
        "kind": "classify", "answer": "label", "family": "SmolVLM", "device_exact": True, "base_types": ("q8_0", "q8_0"),
        "parity_after": None, "similarity": None,
        "classes": ["a", "b"], "images": 100, "images_available": 100, "majority": 0.1, "validation_images": 50,
        "temperature": 1.2, "order": ["q8_0", "bf16"],
        "types": {"q8_0": {**PAIR, **(pair or {})}, "bf16": {**REFERENCE, **(reference or {})}},
        "transformers": MEASURED, "base": MEASURED, "comparisons": [],
        "parity": nats("bf16", parity), "layout": nats("f32", layout),
        "blind": {"accuracy": 0.1, "answers": {}}, **changes,
    })  # fmt: skip


def red(found: Metrics, gates: Gates = GATES) -> set[tuple[str, str]]:
    return {(gate.name, gate.type) for gate in decide(found, gates) if not gate.passed}


def test_a_sound_model_passes_every_gate() -> None:
    assert red(metrics()) == set()
    assert refusal(decide(metrics(), GATES)) is None


@pytest.mark.parametrize(
    ("fault", "gate"),
    [
        ({"accuracy": 0.89}, "min_accuracy"),
        ({"accuracy": 0.92}, "max_drop"),
        ({"agreement": 0.97}, "min_agreement"),
        ({"blind": {"accuracy": 0.26, "answers": {}}}, "max_blind_accuracy"),
        ({"blind": {"accuracy": 0.949, "answers": {}}}, "min_sight"),
        ({"calibration_error_scaled": 0.06}, "max_expected_calibration_error"),
        ({"prompt_ids_equal": False}, "prompt_ids_equal"),
        ({"prompt_tokens_wrong": 1}, "prompt_tokens_wrong"),
        ({"outside": 1}, "answers_outside"),
    ],
)
def test_each_gate_of_a_type_is_red_on_its_fault(fault: dict[str, Any], gate: str) -> None:
    assert (gate, "q8_0") in red(metrics(pair=fault))
    assert {name for name, _ in red(metrics(pair=fault))} <= {gate, "max_drop", "max_blind_accuracy"}


def test_a_model_that_gives_everything_the_commonest_answer_is_refused_by_default() -> None:
    """Grey images are then answered as well as real ones, and no better than guessing: only the difference tells."""
    guess = {"accuracy": 0.6, "blind": {"accuracy": 0.6, "answers": {"a": 100}}, "agreement": 1.0}
    found = metrics(pair=guess).model_copy(update={"majority": 0.6})
    found = found.model_copy(update={"transformers": found.transformers.model_copy(update={"accuracy": 0.6})})
    assert red(found, Gates()) == {("min_sight", "q8_0")}


def test_sight_is_the_share_of_blind_errors_that_seeing_removes() -> None:
    assert sight(0.95, 0.9) == pytest.approx(0.5)
    assert sight(1.0, 1.0) == 0.0


def test_parity_is_red_above_its_limit() -> None:
    assert red(metrics(parity=0.0101)) == {("max_parity_nats", "bf16")}
    assert red(metrics(layout=0.0101)) == {("layout_nats", "bf16")}


def test_the_reference_must_be_asked_rightly_and_need_not_be_good() -> None:
    assert red(metrics(reference={"accuracy": 0.1, "agreement": 0.1})) == set()
    assert red(metrics(reference={"prompt_ids_equal": False})) == {("prompt_ids_equal", "bf16")}


def test_a_limit_itself_passes() -> None:
    assert red(metrics(pair={"accuracy": 0.93}, parity=0.01)) == set()


def test_gates_that_are_off_ask_nothing() -> None:
    off = Gates(max_drop=None, min_agreement=None)
    faults = {"accuracy": 0.5, "agreement": 0.0, "calibration_error_scaled": 0.9}
    assert red(metrics(pair=faults), off) == set()


def test_blind_limit_is_a_little_above_guessing_unless_it_is_given() -> None:
    blind = {"blind": {"accuracy": 0.24, "answers": {}}}
    assert red(metrics(pair=blind)) == set()
    assert red(metrics(pair=blind), Gates(max_blind_accuracy=0.2)) == {("max_blind_accuracy", "q8_0")}


def test_a_refusal_names_each_gate_with_both_numbers() -> None:
    text = refusal(decide(metrics(pair={"accuracy": 0.875, "agreement": 0.5}), GATES))
    assert text is not None
    assert "min_accuracy of q8_0: measured 0.8750, must be at least 0.9000" in text
    assert "min_agreement of q8_0: measured 0.5000, must be at least 0.9800" in text
    assert "latest.json stays" in text


LIST = {"precision": 0.9, "recall": 0.9, "f1": 0.9, "f1_macro": 0.9}
EXTRACTED: dict[str, Any] = {
    "calibration_error": None, "macro_f1": None, "classes": [], "confusion": [], "list_f1": 0.9,
    "written": {"valid": 1.0, "valid_free": 0.99, "unread": 0, "unread_free": 1, "accuracy_free": 0.95},
    "fields": [{"name": "is_food", "type": "integer", "accuracy": 0.97},
               {"name": "food_items", "type": "list", "accuracy": 0.9, "list": LIST, "list_raw": LIST}],
}  # fmt: skip
FIELD_GATES = Gates(min_valid=0.99, min_valid_free=0.9, min_field_accuracy=0.9, min_list_f1=0.8)


def extracted(**pair: Any) -> Metrics:
    kind = {"kind": "extract", "answer": "fields", "classes": [], "majority": None, "temperature": None}
    return metrics(pair={**EXTRACTED, **pair}, reference=EXTRACTED, **kind)


def test_a_sound_model_that_fills_fields_in_passes_and_is_not_asked_about_classes() -> None:
    results = decide(extracted(), FIELD_GATES)
    assert refusal(results) is None
    asked = {gate.name for gate in results}
    assert {"min_valid", "min_valid_free", "min_field_accuracy", "min_list_f1"} <= asked
    assert not asked & {"answers_outside", "max_blind_accuracy", "max_expected_calibration_error"}


@pytest.mark.parametrize(
    ("fault", "gate"),
    [
        ({"written": {**EXTRACTED["written"], "valid": 0.98}}, "min_valid"),
        ({"written": {**EXTRACTED["written"], "valid_free": 0.8}}, "min_valid_free"),
        ({"fields": [*EXTRACTED["fields"], {"name": "drinks", "type": "list", "accuracy": 0.89}]}, "min_field_accuracy"),
        ({"list_f1": 0.79}, "min_list_f1"),
    ],
)
def test_each_gate_of_fields_is_red_on_its_fault(fault: dict[str, Any], gate: str) -> None:
    assert red(extracted(**fault), FIELD_GATES) == {(gate, "q8_0")}


def test_an_answer_that_cannot_be_read_refuses_by_default() -> None:
    fault = {"written": {**EXTRACTED["written"], "valid": 0.99}, "outside": 1}
    assert red(extracted(**fault), Gates()) == {("min_valid", "q8_0")}


def test_parity_of_a_family_that_is_not_device_exact_refuses_only_where_a_limit_is_given() -> None:
    far = metrics(parity=0.3, layout=0.2, device_exact=False, family="LFM2-VL")
    assert red(far, Gates()) == set()
    assert red(far, Gates(max_parity_nats=0.1)) == {("max_parity_nats", "bf16"), ("layout_nats", "bf16")}
    assert red(metrics(parity=0.3, layout=0.2), Gates()) == {("max_parity_nats", "bf16"), ("layout_nats", "bf16")}


def test_ids_and_tokens_of_the_prompt_must_be_equal_in_every_family() -> None:
    fault = {"prompt_ids_equal": False, "prompt_tokens_wrong": 2}
    found = red(metrics(pair=fault, device_exact=False), Gates())
    assert found == {("prompt_ids_equal", "q8_0"), ("prompt_tokens_wrong", "q8_0")}
