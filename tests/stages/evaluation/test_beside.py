"""Another run beside this one: which are found, and what is compared."""

from __future__ import annotations

from pathlib import Path

import pytest

from pocketvlm.artifacts.artifact import Artifact, publish
from pocketvlm.artifacts.folder import FolderStore
from pocketvlm.artifacts.run_record import run_id, write_recipe
from pocketvlm.artifacts.store import Store
from pocketvlm.errors import UserError
from pocketvlm.report.results import Metrics, Prediction
from pocketvlm.run_file import Recipe
from pocketvlm.stages.evaluation.beside import find_other
from pocketvlm.stages.recording import Recorder

MEASURED = {"images": 4, "correct": 3, "accuracy": 0.75, "interval": (0.3, 0.95), "outside": 0}
NATS = {"pair": "bf16", "images": 1, "tokens": 1, "max_nats": 0.0, "mean_nats": 0.0, "max_nats_of_a_token": 0.0}


def metrics(answer: str, tokens: float) -> Metrics:
    pair = {**MEASURED, "text": "text-q8_0.gguf", "mmproj": "mmproj-q8_0.gguf", "shipped": True, "agreement": 1.0,
            "prompt_ids_equal": True, "prompt_tokens": (40, 46), "prompt_tokens_wrong": 0,
            "tokens": {"median": tokens, "p95": 60, "most": 60}}  # fmt: skip
    return Metrics.model_validate({
        "kind": "classify", "answer": answer, "family": "SmolVLM", "device_exact": True, "classes": ["a", "b"], "images": 4,
        "images_available": 4, "majority": 0.5, "validation_images": 4, "temperature": 1.0, "order": ["q8_0"],
        "types": {"q8_0": pair}, "transformers": MEASURED, "base": MEASURED, "base_types": ("q8_0", "q8_0"), "comparisons": [],
        "parity": NATS, "layout": NATS, "parity_after": None, "similarity": None, "blind": {"accuracy": 0.0, "answers": {}},
    })  # fmt: skip


def prediction(number: int, label: str, said: str | None) -> Prediction:
    return Prediction(
        sha256=f"{number:064x}", source_id="x", label=label, transformers="", transformers_label=None,
        transformers_confidence=None, base="", base_label=None,
        answers={"q8_0": said or "?"}, labels={"q8_0": said}, confidences={"q8_0": 0.9},
    )  # fmt: skip


def evaluated(
    store: Store, folder: Path, name: str, answer: str, tokens: float, rows: list[Prediction], latency: dict[str, float]
) -> tuple[str, Artifact]:
    """A run whose evaluator has finished."""
    recipe = Recipe.model_validate({
        "name": name, "task": {"question": "Which?", "classes": {"a": "", "b": ""}}, "student": {"model": "tiny"},
        "labeller": {"source": {"kind": "digits"}}, "trainer": {"phases": [{}]},
    })  # fmt: skip
    out = folder / name
    out.mkdir()
    (out / "metrics.json").write_bytes(metrics(answer, tokens).to_bytes())
    (out / "predictions.jsonl").write_text("".join(f"{row.model_dump_json()}\n" for row in rows))
    recorder = Recorder(store, write_recipe(store, recipe), "evaluator", "reports")
    artifact = publish(
        store, "reports", f"{len(name):016x}", out, inputs={}, settings={}, facts={}, measurements={"latency": {"q8_0": latency}}
    )
    recorder.begin(artifact.id)
    recorder.end("done", artifact.id)
    return run_id(recipe), artifact


def test_runs_are_compared_on_the_images_of_both_that_have_one_label(tmp_path: Path) -> None:
    store = FolderStore(tmp_path / "store")
    labels = [prediction(0, "a", "a"), prediction(1, "a", "b"), prediction(2, "b", "b"), prediction(3, "b", "b")]
    reasons = [prediction(0, "a", "a"), prediction(1, "a", "a"), prediction(2, "b", None), prediction(3, "a", "a"),
               prediction(9, "a", "a")]  # fmt: skip
    plain, _ = evaluated(store, tmp_path, "plain", "label", 2.0, labels, {"answer_ms_median": 5.0})
    own, report = evaluated(store, tmp_path, "reasons", "reasoning", 40.0, reasons, {})
    other = find_other(store, plain)
    found = other.compare(own, metrics("reasoning", 40.0), report)
    assert found.images == 3
    assert (found.own.run, found.own.answer, found.own.only, found.own.answer_tokens) == (own, "reasoning", 1, 40.0)
    assert (found.other.run, found.other.answer, found.other.only, found.other.answer_tokens) == (plain, "label", 1, 2.0)
    assert found.own.accuracy == found.other.accuracy == pytest.approx(2 / 3, abs=1e-6)
    assert found.p_value == 1.0 and found.interval[0] < 0 < found.interval[1]
    assert other.latency() == {"answer_ms_median": 5.0}


@pytest.mark.parametrize("named", ["nobody", "nobody-0123abcd"])
def test_a_run_that_is_not_there_is_refused_by_its_key(tmp_path: Path, named: str) -> None:
    with pytest.raises(UserError, match=f"run.evaluator.beside: {named} is neither a finished run nor a release"):
        find_other(FolderStore(tmp_path / "store"), named)


def test_runs_without_a_common_image_are_not_compared(tmp_path: Path) -> None:
    store = FolderStore(tmp_path / "store")
    plain, _ = evaluated(store, tmp_path, "plain", "label", 2.0, [prediction(0, "a", "a")], {})
    own, report = evaluated(store, tmp_path, "reasons", "reasoning", 40.0, [prediction(1, "a", "a")], {})
    with pytest.raises(UserError, match=r"run\.evaluator\.beside: no test image of this run is one of plain-"):
        find_other(store, plain).compare(own, metrics("reasoning", 40.0), report)
