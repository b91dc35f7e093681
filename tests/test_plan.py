"""`pocketvlm plan`: what it says, and what it refuses before anything is paid for."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from pocketvlm.artifacts.open import open_store
from pocketvlm.environment import Environment
from pocketvlm.errors import RunFileError, UserError
from pocketvlm.plan import check, plan
from pocketvlm.plan.facts import student_facts
from pocketvlm.plan.training import passes_of
from pocketvlm.run_file import RunFile, check_run_file

DIGITS = Path(__file__).parents[1] / "jobs" / "digits.yaml"


@pytest.fixture
def environment(tmp_path: Path) -> Environment:
    return Environment(store=str(tmp_path / "store"), scratch=tmp_path / "scratch")


def digits(**changes: Any) -> RunFile:
    """jobs/digits.yaml with keys replaced by dotted path below `run` (`__` for `.`)."""
    content = yaml.safe_load(DIGITS.read_text())
    for path, value in changes.items():
        *parents, last = path.split("__")
        block = content["run"]
        for key in parents:
            block = block.setdefault(key, {})
        block[last] = value
    return check_run_file(content, DIGITS)


def test_plan_names_images_tokens_steps_and_sizes_of_every_stage(environment: Environment) -> None:
    text = plan(digits(), environment)
    assert "1797 images of source digits" in text
    assert "8 visual tokens an image (1x1 tiles and the overview)" in text
    assert "tokens a prompt" in text
    assert "steps of" in text
    assert "q8_0" in text
    assert "MB" in text
    assert text.count("to do") == 5
    assert "; pixels and tokens exactly as on the phone" in text


def test_plan_counts_every_pair_of_question_and_answer_as_a_sample(environment: Environment) -> None:
    questions = [{"ask": "So?"}, {"ask": "And?", "answer": "It is {label}, I am quite sure of that, and of nothing else at all."},
                 {"ask": "Well?"}]  # fmt: skip
    phases = [{"method": "full", "train": ["text"], "epochs": 2}]
    plain = plan(digits(trainer__phases=phases, trainer__batch_size=16), environment)
    assert "pairs of question" not in plain
    # 1,258 of 1,797 images train.
    assert "2 epochs = 158 steps of 16" in plain
    asked = plan(digits(trainer__phases=phases, trainer__batch_size=16, task__questions=questions, task__questions_per_image=2),
                 environment)  # fmt: skip
    assert "3774 pairs of question and answer: with each image the shipped question, and 2 of 3 more" in asked
    assert "2 epochs = 472 steps of 16" in asked


def test_a_run_to_stand_beside_that_is_not_there_yet_is_told_of_before_anything_is_paid_for(environment: Environment) -> None:
    text = plan(digits(evaluator__beside="fruit"), environment)
    assert "beside fruit: no finished run or release of" in text and "refuses to begin" in text
    assert not re.search("^ +beside ", plan(digits(), environment), re.MULTILINE)


def test_a_plan_makes_nothing(environment: Environment) -> None:
    plan(digits(), environment)
    assert not [path for path in Path(environment.store).rglob("*") if path.is_file() and ".pending" not in path.parts]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"device__longest_edge_px": 48}, r"run.device.longest_edge_px: 48 is no tile budget .* use one of 32, 64, 96"),
        ({"device__longest_edge_px": 224}, r"run.device.longest_edge_px: 224 is no tile budget"),
        ({"device__max_new_tokens": 1}, r"run.device.max_new_tokens: 1 is too small for the answer .* set at least \d"),
        ({"task__classes": dict.fromkeys(["no", "none", *"abcdefgh"], "")}, r"run.task.classes: 'no' is the beginning of 'none'"),
        ({"task__question": "why? " * 2000}, r"run.device.longest_edge_px: prompt and answer take \d+ tokens .* 2048 positions"),
        (
            {"task__questions": [{"ask": "So?"}, {"ask": "why? " * 2000, "answer": "{label}"}]},
            r"run.task.questions\[1\]: image, question and answer for '\w+' take \d+ tokens and the student has 2048 positions",
        ),
        (
            {"task__questions": [{"ask": "So?", "answer": "{label}" + " why?" * 2000}]},
            r"run.task.questions\[0\]: image, question and answer for '\w+' take \d+ tokens",
        ),
        (
            {"trainer__phases": [{"method": "lora", "train": ["text"], "targets": {"text": ["q_prj"]}}]},
            r"run.trainer.phases\[0\].targets.text: the text part has no linear layer 'q_prj'; it has .*q_proj",
        ),
        (
            {"trainer__phases": [{"train": ["text"]}, {"train": ["text"], "targets": {"text": ["embed_tokens"]}}]},
            r"run.trainer.phases\[1\].targets.text: the text part has no linear layer 'embed_tokens'",
        ),
    ],
)
def test_what_cannot_work_is_refused_with_its_key_and_what_to_do(
    changes: dict[str, Any], message: str, environment: Environment
) -> None:
    with pytest.raises(RunFileError, match=message):
        check(digits(**changes), environment)


def test_a_target_may_be_more_than_the_last_name_of_its_path(environment: Environment) -> None:
    check(digits(trainer__phases=[{"train": ["text"], "targets": {"text": ["mlp.down_proj"]}}]), environment)


def test_two_problems_are_told_at_once(environment: Environment) -> None:
    with pytest.raises(RunFileError) as caught:
        check(digits(device__longest_edge_px=48, device__max_new_tokens=1), environment)
    assert len(str(caught.value).splitlines()) == 2


def test_an_unpinned_hub_model_is_refused(environment: Environment) -> None:
    with pytest.raises(UserError, match=r"run.student.revision: is missing; pin the commit of owner/model"):
        check(digits(student={"model": "owner/model"}), environment)


def test_a_student_of_another_vocabulary_is_refused(environment: Environment, tmp_path: Path) -> None:
    from pocketvlm.student.tiny import build_tiny

    folder = build_tiny(tmp_path / "other", seed=0, longest_edge_px=32)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_text((folder / name).read_text().replace("<|im_start|>", "<|begin|>"))
    with pytest.raises(UserError, match=r"run.student.model: the tokenizer of .*other has not '<\|im_start\|>' as one token"):
        check(digits(student={"model": str(folder)}), environment)


def test_a_revision_of_a_folder_that_looks_like_a_hub_id_is_refused(environment: Environment, tmp_path: Path) -> None:
    (tmp_path / "owner" / "model").mkdir(parents=True)
    run_file = digits(student={"model": "owner/model", "revision": "0" * 40}).model_copy(update={"folder": tmp_path})
    with pytest.raises(UserError, match=r"run.student.revision: only a Hub id has one, and owner/model is a folder"):
        check(run_file, environment)


def test_a_folder_without_a_checkpoint_is_refused(environment: Environment) -> None:
    with pytest.raises(UserError, match=r"run.student.model: ./nowhere is neither"):
        check(digits(student={"model": "./nowhere"}), environment)


def extract(folder: Path, title: str, questions: Any = (), **changes: Any) -> RunFile:
    """A run file of fields whose labels lie beside it; one of them has this title."""
    rows = [{"image_id": str(i), "image_path": f"{i}.png", "title": text} for i, text in enumerate(("short", title))]
    for row in rows:
        Image.new("RGB", (8, 8)).save(folder / row["image_path"])
    (folder / "labels.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    fields = {"title": {"type": "string", "description": "what can be seen"}}
    task = {"kind": "extract", "fields": fields, "question": 'As {"title": "a cat"}', "questions": list(questions)}
    source = {"kind": "records", "path": "labels.jsonl", "field_columns": {"title": "title"}}
    return digits(task=task, labeller={"source": source}, **changes).model_copy(update={"folder": folder})


def test_the_longest_answer_of_local_labels_is_counted_and_refused_beyond_the_devices_limit(
    environment: Environment, tmp_path: Path
) -> None:
    assert "the longest answer takes" in plan(extract(tmp_path, "a cat", device__max_new_tokens=64), environment)
    message = r"run.device.max_new_tokens: 16 is too small for the answer '{\"title\":\"zyx.* at least \d+"
    with pytest.raises(RunFileError, match=message):
        check(extract(tmp_path, "zyx" * 20, device__max_new_tokens=16), environment)


def test_other_words_for_fields_must_leave_room_for_the_longest_answer(environment: Environment, tmp_path: Path) -> None:
    fits = extract(tmp_path, "a cat", device__max_new_tokens=64, questions=[{"ask": "why? " * 100}])
    assert "with each image the shipped question, and 1 of 1 more" in plan(fits, environment)
    message = r"run.task.questions\[1\]: image, question and answer take \d+ tokens and the student has 2048 positions"
    with pytest.raises(RunFileError, match=message):
        check(extract(tmp_path, "a cat", device__max_new_tokens=64, questions=[{"ask": "So?"}, {"ask": "why? " * 2000}]),
              environment)  # fmt: skip


def test_what_only_a_teacher_can_tell_is_said_to_be_unknown_yet(environment: Environment) -> None:
    task = {"classes": [{"no": "a cross"}, {"yes": "a tick"}], "question": "So?", "answer": "reasoning"}
    text = plan(digits(task=task, labeller__teacher={"model": "m"}), environment)
    assert "how long answers are is known with the labels; training refuses one of more than 8 tokens" in text


def test_memory_is_said_for_every_phase_and_a_budget_that_cannot_be_kept_is_refused(environment: Environment) -> None:
    assert "GB" in plan(digits(), environment)
    with pytest.raises(RunFileError, match=r"run.trainer.memory_gb: phase 1 takes"):
        check(digits(trainer__memory_gb=0.001), environment)


@pytest.mark.parametrize(
    ("train", "changes", "images", "held"),
    [
        # A look of the tiny student: 4 visual tokens of 512 bf16 numbers, or the pixels of one tile of 32 px.
        ("text", {}, {"train": 100, "validation": 20}, 120 * 4 * 512 * 2),
        ("vision", {}, {"train": 100, "validation": 20}, 120 * 32 * 32 * 3),
        ("text", {"augment": {"variants": 2}}, {"train": 100, "validation": 20}, (300 + 20) * 4 * 512 * 2),
        ("text", {}, {"train": 2_000_000, "validation": 20}, 20 * 4 * 512 * 2),
    ],
    ids=["both splits", "pixels where vision trains", "every look of a training image", "a split that stays in a file"],
)
def test_memory_counts_the_images_as_the_trainer_keeps_them(
    environment: Environment, train: Any, changes: dict[str, Any], images: dict[str, int], held: int
) -> None:
    run_file = digits(trainer__phases=[{"train": [train]}], **{f"trainer__{key}": value for key, value in changes.items()})
    facts = student_facts(run_file.run, run_file.folder, environment, open_store(environment))
    assert passes_of(run_file.run, facts, run_file.run.trainer.phases[0], images).memory.held == held


@pytest.mark.parametrize(
    ("name", "lines"),
    [
        ("elements", [r"lora, LoRA of rank 16, alpha 32, dropout 0 on text, 3 epochs .* of 16 at 0\.0002 \(linear\)"]),
        ("solar", [r"full, .* M vision .*, 3 epochs .* of 16 at 0\.0003 \(linear after 50 steps, weight decay 0\.01\)"]),
        ("food", [r"full, .* M connector \+ text, 2 epochs .* of 32 at 0\.0002", r"full, .* M vision \+ .* 2 epochs .* 2e-06"]),
        ("food-lora", [r"rank 16, alpha 16, dropout 0\.05 on text and all of lm_head, embed_tokens, 2 epochs .* at 0\.0002"]),
        ("mars", [r"full, .* M vision \+ connector \+ text, 3 epochs .* of 16 at 1e-05 \(linear\)"]),
    ],
)
def test_a_known_recipe_is_printed_with_its_numbers(environment: Environment, name: str, lines: list[str]) -> None:
    """Its trainer's block, on the digits and the tiny student: the plan of its own student and data asks servers."""
    trainer = yaml.safe_load((DIGITS.parent / f"{name}.yaml").read_text())["run"]["trainer"]
    text = plan(digits(trainer=trainer), environment)
    for phase, line in enumerate(lines, start=1):
        assert re.search(f"phase {phase}: .*{line}", text), text
