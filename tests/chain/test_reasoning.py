"""Reasons against labels alone, on digits: what a line of reasons costs and buys on the GGUF.

The student that reasons goes on from the weights of the one that names digits, on its images; from random weights it would need
as many epochs again, of longer answers.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from pocketvlm.artifacts.dataset import read_rows, read_split
from pocketvlm.environment import read_environment
from pocketvlm.llamacpp.toolchain import find_toolchain
from pocketvlm.predict import Model
from pocketvlm.run_file import read_run_file
from pocketvlm.student.families import read_geometry
from pocketvlm.student.pixels import grid
from pocketvlm.student.processor_files import load_tokenizer
from pocketvlm.student.prompt import IGNORE, PromptEncoder

from ..conftest import Place, kept, place

pytestmark = [pytest.mark.chain, pytest.mark.llamacpp, pytest.mark.timeout(1500)]

TASK: dict[str, Any] = {"answer": "reasoning", "reasons": ["I see {description}.", "It has {description}."]}
"""Classes and question are those of the labels alone."""
TRAINER = {"phases": [{"method": "full", "train": ["connector", "text"], "epochs": 2.5, "learning_rate": 2e-3,
                       "schedule": "cosine", "warmup_steps": 20, "weight_decay": 0.01}], "batch_size": 8}  # fmt: skip
EVALUATOR = {"beside": "digits", "max_images": 120, "parity_images": 4, "golden_images": 2, "gates": {
    "min_accuracy": 0.8, "max_drop": 0.05, "min_agreement": 0.9}}  # fmt: skip


@pytest.fixture(scope="module")
def reasons(digits: Place, tmp_path_factory: pytest.TempPathFactory) -> Place:
    """The run of reasons at its end, in a copy of the store of labels alone."""
    folder = kept("reasons", tmp_path_factory)
    base = digits.artifact("merger").id
    there = place(folder, {
        "name": "reasons", "task": TASK, "device": {"max_new_tokens": 64}, "student": {"model": f"models/{base}"},
        "trainer": TRAINER, "quantiser": {"types": ["q8_0"]}, "evaluator": EVALUATOR,
    })  # fmt: skip
    shutil.copytree(digits.folder / "store", folder / "store", dirs_exist_ok=True)
    done = there.pocketvlm("run", str(there.run_file))
    assert done.returncode == 0, done.stderr[-4000:]
    return there


def test_the_pair_reasons_and_then_names_the_digit(reasons: Place) -> None:
    found = reasons.metrics()["types"]["q8_0"]
    assert found["accuracy"] >= 0.8
    assert found["written"]["valid"] == 1.0 and found["written"]["unread"] == 0
    assert found["written"]["unread_free"] == round((1 - found["written"]["valid_free"]) * found["images"])


def test_a_reason_costs_tokens_and_time_and_the_report_shows_both_runs(digits: Place, reasons: Place) -> None:
    own, other = reasons.metrics()["types"]["q8_0"], digits.metrics()["types"]["q8_0"]
    assert own["tokens"]["median"] > 4 * other["tokens"]["median"]
    taken = [there.artifact("evaluator").measurements()["latency"]["q8_0"]["answer_ms_median"] for there in (reasons, digits)]
    assert taken[0] > 2 * taken[1]
    (page,) = (path.read_text() for path in reasons.folder.rglob("reports/*.html"))
    for text in (f"{own['tokens']['median']:g}", f"{other['tokens']['median']:g}", "digits-", "McNemar"):
        assert text in page, text
    assert " beside digits\n" in reasons.pocketvlm("plan", str(reasons.run_file)).stdout


def test_no_reason_and_no_field_of_a_teacher_is_in_what_the_student_is_asked(reasons: Place, tmp_path: Path) -> None:
    """prompt.txt is all that comes before an answer, in every training sample as on the phone."""
    prompt = reasons.artifact("evaluator").read("prompt.txt").decode()
    recipe = read_run_file(reasons.run_file).run
    assert recipe.task.question in prompt
    for word in ("I see", "It has", "confidence", "teacher", *recipe.task.classes.values()):
        assert word not in prompt, word
    checkpoint, dataset = (reasons.artifact(stage).fetch(tmp_path / stage) for stage in ("merger", "labeller"))
    tokenizer = load_tokenizer(checkpoint)
    encoder = PromptEncoder(tokenizer, read_geometry(checkpoint), recipe.task)
    layout = grid(32, 32, tile_px=32, longest_edge_px=32)
    asked = set()
    for example in read_split(dataset, "train"):
        sample = encoder.sample(layout, example.answer)
        assert example.answer.startswith("Reasoning: ")
        asked.add(tokenizer.decode([id for id, label in zip(sample.ids, sample.labels, strict=True) if label == IGNORE]))
    (one,) = asked
    before, after = prompt.split("<__media__>")
    assert one.startswith(before) and one.endswith(after)
    assert all(row.teacher_reason is None for row in read_rows(dataset, "train"))


def test_a_person_gets_the_reason_with_the_answer(reasons: Place, tmp_path: Path) -> None:
    own = {"store": str(reasons.folder / "store"), "cache": tmp_path, "llama_cpp_home": find_toolchain(read_environment()).home}
    environment = read_environment().model_copy(update=own)
    golden = next((reasons.folder / "store/releases/reasons").rglob("golden/*.png"))
    with Model.open("reasons", environment=environment) as model:
        row = model.predict(golden)
    assert row.best in read_run_file(reasons.run_file).run.task.classes
    assert row.reason and row.text == f"Reasoning: {row.reason}\nAnswer: {row.best}"
