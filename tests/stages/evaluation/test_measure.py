"""Which pairs are measured, and which images are chosen, kept and shown."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from pydantic import ValidationError

from pocketvlm.artifacts.dataset import Example
from pocketvlm.report.results import Prediction
from pocketvlm.run_file import Recipe
from pocketvlm.stages import evaluator
from pocketvlm.stages.evaluation import pictures
from pocketvlm.stages.evaluation.measure import PairFiles, pairs
from pocketvlm.student import pixels


def recipe(**changes: Any) -> Recipe:
    values: dict[str, Any] = {
        "name": "digits", "task": {"question": "Which?", "classes": {"a": "", "b": ""}}, "student": {"model": "tiny"},
        "labeller": {"source": {"kind": "records", "path": "x.csv"}}, "trainer": {"phases": [{}]},
    }  # fmt: skip
    return Recipe.model_validate({**values, **changes})


def test_the_reference_is_measured_beside_the_shipped_types() -> None:
    found = pairs(recipe(quantiser={"types": ["q8_0", "q4_0"], "mmproj": "q8_0"}))
    assert found == [
        PairFiles("q8_0", "text-q8_0.gguf", "mmproj-q8_0.gguf", True, False),
        PairFiles("q4_0", "text-q4_0.gguf", "mmproj-q8_0.gguf", True, False),
        PairFiles("bf16", "text-bf16.gguf", "mmproj-f16.gguf", False, True),
    ]


def test_a_shipped_pair_that_is_the_reference_is_measured_once() -> None:
    assert pairs(recipe(quantiser={"types": ["bf16"], "mmproj": "f16"})) == [
        PairFiles("bf16", "text-bf16.gguf", "mmproj-f16.gguf", True, True)
    ]


def test_a_shipped_bf16_with_another_mmproj_keeps_its_name() -> None:
    assert [pair.name for pair in pairs(recipe(quantiser={"types": ["bf16"], "mmproj": "q8_0"}))] == ["bf16", "bf16+f16"]


def test_other_gates_and_another_threshold_do_not_measure_again() -> None:
    first = recipe(evaluator={"gates": {"min_accuracy": 0.5}, "answer_threshold": 0.1})
    second = recipe(evaluator={"gates": {"min_accuracy": 0.9}, "answer_threshold": 0.9})
    third = recipe(evaluator={"parity_images": 3})
    settings = [evaluator.settings(found, Path()) for found in (first, second, third)]
    assert settings[0] == settings[1] != settings[2]


LABELS = {"question": "Which?", "classes": {"a": "", "b": ""}}
REASONING = {**LABELS, "answer": "reasoning", "reasons": ["It looks like {label}."]}
TITLE = {"title": {"type": "string", "description": ""}}
NO_LIST = {"kind": "extract", "question": '{"title":"x"}', "fields": [TITLE]}


@pytest.mark.parametrize(
    ("task", "gates", "message"),
    [
        (LABELS, {"min_list_f1": 0.5}, "evaluator.gates.min_list_f1: only kind: extract has fields"),
        (LABELS, {"min_field_accuracy": 0.5}, "evaluator.gates.min_field_accuracy: only kind: extract"),
        (LABELS, {"min_valid": 0.5}, "evaluator.gates.min_valid: every label can be read"),
        (REASONING, {"min_list_f1": 0.5}, "evaluator.gates.min_list_f1: only kind: extract"),
        (NO_LIST, {"min_list_f1": 0.5}, "evaluator.gates.min_list_f1: the task has no list field"),
        (NO_LIST, {"max_expected_calibration_error": 0.1}, "evaluator.gates.max_expected_calibration_error: only a chosen class"),
    ],
)
def test_a_gate_that_measures_nothing_in_this_task_is_refused(task: Any, gates: Any, message: str) -> None:
    with pytest.raises(ValidationError, match=re.escape(message)):
        recipe(task=task, evaluator={"gates": gates})
    assert recipe(task=task, evaluator={"gates": dict.fromkeys(gates)} if "min_valid" not in gates else {})


def test_a_gate_of_readable_answers_is_for_all_that_write() -> None:
    for task in (NO_LIST, REASONING):
        assert recipe(task=task, evaluator={"gates": {"min_valid": 0.9, "min_valid_free": 0.5}})


def test_another_run_to_stand_beside_does_not_measure_again() -> None:
    first, second = recipe(), recipe(evaluator={"beside": "digits-0123abcd"})
    assert evaluator.settings(first, Path()) == evaluator.settings(second, Path())


def test_golden_images_of_a_task_without_classes_are_the_surest_of_all() -> None:
    sure = {"{1}": 0.5, "{2}": 0.9, "{3}": 0.7}
    found = [prediction(i, label, {"q8_0": label}, sure[label]) for i, label in enumerate(sure)]
    assert pictures.golden(found, ["q8_0"], [], 2) == [1, 2]


def prediction(number: int, label: str, answers: dict[str, str], confidence: float = 0.9) -> Prediction:
    return Prediction(
        sha256=f"{number:064x}", source_id=f"x/{number}", label=label, transformers=label, transformers_label=label,
        transformers_confidence=0.9, base="a", base_label="a", answers=answers, labels=answers,
        confidences=dict.fromkeys(answers, confidence),
    )  # fmt: skip


def test_golden_images_go_round_the_classes_and_take_what_every_type_got_right() -> None:
    found = [
        prediction(0, "a", {"q8_0": "b", "q4_0": "a"}, 0.99),
        prediction(1, "a", {"q8_0": "a", "q4_0": "a"}, 0.6),
        prediction(2, "a", {"q8_0": "a", "q4_0": "a"}, 0.8),
        prediction(3, "b", {"q8_0": "b", "q4_0": "b"}),
    ]
    assert pictures.golden(found, ["q8_0", "q4_0"], ["a", "b"], 3) == [2, 3, 1]
    assert pictures.golden(found, ["q8_0", "q4_0"], ["a", "b"], 9) == [2, 3, 1, 0]


def test_the_surest_wrong_answers_are_shown_first() -> None:
    found = [
        prediction(0, "a", {"q8_0": "b", "q4_0": "b"}, 0.6),
        prediction(1, "a", {"q8_0": "a", "q4_0": "a"}, 0.99),
        prediction(2, "b", {"q8_0": "b", "q4_0": "a"}, 0.9),
    ]
    assert pictures.wrong(found, ["q8_0", "q4_0"]) == [2, 0]


@pytest.fixture
def example() -> Example:
    file = io.BytesIO()
    Image.new("RGB", (640, 320), (9, 99, 200)).save(file, "PNG")
    return Example(0, file.getvalue(), "a", "a", "Which?", "0" * 64, "x/0")


def test_pictures_are_small_and_golden_images_are_the_measured_bytes(example: Example, tmp_path: Path) -> None:
    found = [prediction(0, "a", {"q8_0": "b"})]
    pictures.write_pictures(tmp_path, [example], found, ["q8_0"])
    with Image.open(tmp_path / pictures.picture_name(found[0])) as picture:
        assert picture.size == (160, 80)
    pictures.write_golden(tmp_path, [example], found, ["q8_0"], [0])
    golden = json.loads((tmp_path / "golden" / "golden.json").read_text())
    (row,) = golden["images"]
    assert row["types"] == {"q8_0": {"answer": "b", "confidence": 0.9}}
    assert (tmp_path / "golden" / row["file"]).read_bytes() == example.image_png


def test_the_canvas_example_is_an_image_and_what_the_labeller_makes_of_it(tmp_path: Path) -> None:
    (tmp_path / "golden").mkdir()
    pictures.write_canvas(tmp_path, 256)
    golden = tmp_path / "golden"
    with Image.open(golden / "canvas-original.png") as original, Image.open(golden / "canvas.png") as canvas:
        assert original.size != canvas.size == (256, 256)
        assert pixels.letterbox(original, 256).tobytes() == canvas.tobytes()
