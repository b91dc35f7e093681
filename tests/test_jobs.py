"""The run files of the known tasks: they are read, and they hold the known recipes."""

from __future__ import annotations

from pathlib import Path

import pytest

from pocketvlm.artifacts.folder import FolderStore
from pocketvlm.artifacts.run_record import run_id, write_recipe
from pocketvlm.run_file import Evaluator, Gates, Recipe, read_run_file
from pocketvlm.student.tasks import kind_of
from pocketvlm.student.variants import variants

JOBS = Path(__file__).parents[1] / "jobs"
NAMES = ("digits", "elements", "mars", "solar", "food", "food-lora")


def recipe(name: str) -> Recipe:
    return read_run_file(JOBS / f"{name}.yaml").run


def test_there_is_a_run_file_for_each_known_task_and_no_other() -> None:
    assert sorted(path.stem for path in JOBS.glob("*.yaml")) == sorted(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_run_file_is_valid_and_named_like_its_file(name: str) -> None:
    assert recipe(name).name == name


@pytest.mark.parametrize("name", NAMES)
def test_the_record_of_a_run_is_a_run_file_again(name: str, tmp_path: Path) -> None:
    store = FolderStore(tmp_path / "store")
    run = write_recipe(store, recipe(name))
    (tmp_path / "run.yaml").write_bytes(store.read(f"runs/{run}/run.yaml"))
    again = read_run_file(tmp_path / "run.yaml").run
    assert again == recipe(name) and run_id(again) == run


@pytest.mark.parametrize("name", NAMES)
def test_a_run_file_opens_with_what_it_is_and_the_exact_commands(name: str) -> None:
    lines = (JOBS / f"{name}.yaml").read_text().splitlines()
    head = lines[: lines.index("run:")]
    assert all(line.startswith("#") for line in head)
    assert any(f"pocketvlm run jobs/{name}.yaml" in line for line in head)


@pytest.mark.parametrize("name", NAMES)
def test_every_class_is_described_and_the_task_has_no_problem(name: str) -> None:
    run = recipe(name)
    assert all(run.task.classes.values())
    assert list(kind_of(run.task).problems()) == []


@pytest.mark.parametrize("name", ["elements", "mars", "solar"])
def test_the_question_names_every_class(name: str) -> None:
    run = recipe(name)
    assert [label for label in run.task.classes if label not in run.task.question] == []


@pytest.mark.parametrize("name", [name for name in NAMES if name != "digits"])
def test_a_model_from_the_hub_is_pinned(name: str) -> None:
    student = recipe(name).student
    assert student.model.startswith("HuggingFaceTB/SmolVLM")
    assert student.revision is not None


def test_elements_is_the_known_recipe() -> None:
    run = recipe("elements")
    (phase,) = run.trainer.phases
    assert run.student.model == "HuggingFaceTB/SmolVLM2-500M-Video-Instruct"
    assert list(run.task.classes) == ["water", "land", "fire", "wood", "metal"]
    assert (run.device.canvas_px, run.device.max_new_tokens) == (256, 32)
    assert (phase.method, phase.rank, phase.alpha, phase.epochs, phase.learning_rate) == ("lora", 16, 32, 3, 2e-4)
    assert (run.trainer.batch_size, run.trainer.micro_batch_size, run.trainer.precision) == (16, 4, "bf16")
    assert run.labeller.teacher is not None
    assert (run.labeller.source.kind, run.labeller.teacher.model, run.labeller.min_confidence) == ("coco", "gpt-4o", 0.7)


def test_mars_is_the_known_recipe() -> None:
    run = recipe("mars")
    assert " ".join(run.task.classes) == "ael aec cli rid fsf sfe fsg fse fss cra sfx mix rou smo tex"
    assert run.task.answer == "reasoning"
    assert "geologist" in (run.task.system or "")


def test_solar_is_the_known_recipe() -> None:
    run = recipe("solar")
    (phase,) = run.trainer.phases
    assert run.student.model == "HuggingFaceTB/SmolVLM-256M-Instruct"
    assert run.labeller.source.kind == "folder"
    assert sorted(run.labeller.source.class_folders) == [
        "Bird-drop", "Clean", "Dusty", "Electrical-damage", "Physical-Damage", "Snow-Covered",
    ]  # fmt: skip
    assert sorted(run.labeller.source.class_folders.values()) == sorted(run.task.classes)
    assert (phase.method, phase.learning_rate, phase.weight_decay, phase.warmup_steps) == ("full", 3e-4, 0.01, 50)
    assert phase.train == ["vision", "connector", "text"]
    assert (run.trainer.batch_size, run.trainer.micro_batch_size) == (16, 4)


def test_solar_is_trained_on_other_wordings_and_descriptions_beside_the_plain_label() -> None:
    task = recipe("solar").task
    assert len(task.questions) >= 4 and task.questions_per_image == 2
    assert {"{label}", "{description}"} < {question.answer for question in task.questions}
    for label, description in task.classes.items():
        pairs = [pair for number in range(20) for pair in variants(task, str(number), label)]
        assert len({question for question, _ in pairs}) == len(task.questions)
        assert all(label in answer or description in answer for _, answer in pairs)
        assert not [question for question, _ in pairs if description in question], "the answer is not in the question"


def test_food_is_the_known_recipe() -> None:
    run = recipe("food")
    first, second = run.trainer.phases
    assert list(run.task.fields) == ["is_food", "image_title", "food_items", "drink_items"]
    assert (first.method, first.train, first.epochs, first.learning_rate) == ("full", ["connector", "text"], 2, 2e-4)
    assert (second.method, second.epochs, second.learning_rate) == ("full", 2, 2e-6)
    assert second.train == ["vision", "connector", "text"]
    assert (run.trainer.batch_size, run.trainer.micro_batch_size) == (32, 8)
    assert (run.trainer.seed, run.labeller.split.seed) == (42, 42)


def test_food_lora_is_its_predecessor_and_differs_in_training_alone() -> None:
    run, food = recipe("food-lora"), recipe("food")
    (phase,) = run.trainer.phases
    assert (phase.method, phase.rank, phase.alpha, phase.dropout) == ("lora", 16, 16, 0.05)
    assert (phase.full, phase.epochs, phase.learning_rate) == (["lm_head", "embed_tokens"], 2, 2e-4)
    assert run.model_copy(update={"name": "food", "trainer": food.trainer}) == food
    assert (run.trainer.batch_size, run.trainer.micro_batch_size, run.trainer.seed) == (32, 8, 42)


@pytest.mark.parametrize("name", ["food", "food-lora"])
def test_what_is_made_for_classes_does_not_gate_answers_of_four_fields(name: str) -> None:
    gates, default = recipe(name).evaluator.gates, Gates()
    assert recipe(name).evaluator.answer_threshold < Evaluator().answer_threshold
    assert gates.min_list_f1 and gates.min_sight is None
    assert gates.min_agreement and default.min_agreement and gates.min_agreement < default.min_agreement


@pytest.mark.parametrize("name", ["solar", "food"])
def test_eighty_twenty_keeps_its_twenty_for_the_test_split(name: str) -> None:
    split = recipe(name).labeller.split
    assert split.test == 0.2
    assert split.train + split.validation == pytest.approx(0.8)
