"""`answer: reasoning`: where reasons come from, and that nothing a teacher said stands before a student's answer."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from desks import CLASSES, Desk
from fake_answers import Question, Speaker
from fake_teacher import FakeTeacher

from pocketvlm.artifacts.artifact import Artifact
from pocketvlm.artifacts.corrections import FORMAT
from pocketvlm.artifacts.dataset import SPLITS, read_quarantine, read_split
from pocketvlm.errors import RunFileError
from pocketvlm.run_file import RunFile, check_run_file
from pocketvlm.student.families import read_geometry
from pocketvlm.student.pixels import grid
from pocketvlm.student.processor_files import load_tokenizer
from pocketvlm.student.prompt import IGNORE, PromptEncoder
from pocketvlm.student.tasks import kind_of
from pocketvlm.student.tiny import build_tiny

REASONING: dict[str, Any] = {
    "classes": [{name: f"the look of {name}"} for name in CLASSES], "question": "Which, and why?", "answer": "reasoning",
    "system": "Look closely.",
    "questions": [{"ask": "One of {classes}?", "answer": "{label}: {description}"}, {"ask": "Name it.", "answer": "{label}"}],
    "questions_per_image": 2,
}  # fmt: skip
TEMPLATES = {"reasons": ["It has {description}.", "Here is {description}, as of {label}."]}


class Canary(Speaker):
    """Gives every picture texts of its own in every field of its answer."""

    def say(self, question: Question, schema: dict[str, Any]) -> Any:
        answer = super().say(question, schema)
        mark = question.sha256[:12]
        texts = {name: f"canary-{name}-{mark}" for name in ("light", "context")}
        lists = {name: [f"canary-{name}-{mark}"] for name in ("objects", "materials", "colours", "textures")}
        return {**answer, "observations": {**texts, **lists}, "reason": f"canary-reason-{mark}\nbecause", "confidence": 0.8125}


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    with FakeTeacher() as teacher:
        teacher.speaker = Canary(waver=0.0)
        desk = Desk(tmp_path, teacher)
        desk.put(CLASSES * 4)
        yield desk


def answers(desk: Desk, artifact: Artifact) -> dict[str, str]:
    return {name: row["answer"] for name, row in desk.rows(artifact).items()}


def test_the_teachers_reason_is_the_first_line_of_the_answer(desk: Desk) -> None:
    rows = desk.rows(desk.label(desk.run_file(task=REASONING)))
    assert len(rows) == 12
    for name, row in rows.items():
        label = name[4:-4]
        assert row["teacher_reason"].startswith("canary-reason-")
        assert row["answer"] == f"Reasoning: {row['teacher_reason']}\nAnswer: {label}"
        assert row["label"] == label and row["label_id"] == CLASSES.index(label)


@pytest.mark.parametrize("changes", [{}, TEMPLATES, {"answer": "label"}], ids=["of the teacher", "of templates", "label only"])
def test_no_prompt_of_a_student_holds_a_word_of_the_teacher(desk: Desk, tmp_path: Path, changes: dict[str, Any]) -> None:
    run_file = desk.run_file(task={**REASONING, **changes})
    artifact = desk.label(run_file)
    rows = desk.rows(artifact)
    task, checkpoint = run_file.run.task, build_tiny(tmp_path / "tiny", seed=0, longest_edge_px=32)
    tokenizer, geometry = load_tokenizer(checkpoint), read_geometry(checkpoint)
    encoder = PromptEncoder(tokenizer, geometry, task)
    layout = grid(32, 32, tile_px=32, longest_edge_px=32)
    learnt = 0
    for split in SPLITS:
        for example in read_split(desk.root / "fetched" / artifact.id, split):
            pairs = [(None, example.answer), *example.variants]
            assert len(pairs) == (3 if split == "train" else 1)
            for question, answer in pairs:
                sample = encoder.sample(layout, answer, question)
                asked = tokenizer.decode([id for id, label in zip(sample.ids, sample.labels, strict=True) if label == IGNORE])
                assert "canary" not in asked and "0.8125" not in asked
                assert "canary" not in kind_of(task).prompt(geometry.family.template)
                learnt += "canary" in answer
                assert ("canary" in answer) == (question is None and not changes), "only the answer with a reason has it"
    assert learnt == (0 if changes else 12)
    assert all(row["teacher_reason"].startswith("canary") for row in rows.values()), "the dataset keeps it for people"


def test_templates_give_each_image_one_of_their_reasons_by_its_bytes(desk: Desk) -> None:
    first = answers(desk, desk.label(desk.run_file(task={**REASONING, **TEMPLATES})))
    again = answers(desk, desk.label(desk.run_file(task={**REASONING, **TEMPLATES}), store="other"))
    assert first == again
    seen = set()
    for name, answer in first.items():
        label = name[4:-4]
        reasons = [f"It has the look of {label}.", f"Here is the look of {label}, as of {label}."]
        assert answer in [f"Reasoning: {reason}\nAnswer: {label}" for reason in reasons]
        seen.add(answer.startswith("Reasoning: Here"))
    assert seen == {True, False}


def test_an_image_whose_label_a_person_changed_has_no_reason(desk: Desk) -> None:
    rows = desk.rows(desk.label(desk.run_file(task=REASONING)))
    said = {"000-fire.jpg": "water", "003-fire.jpg": "fire"}
    items = [{"sha256": rows[name]["sha256"], "label": label} for name, label in said.items()]
    (desk.root / "corrections.json").write_text(json.dumps({"format": FORMAT, "items": items}))
    artifact = desk.label(desk.run_file(task=REASONING, corrections="corrections.json"))
    assert desk.refused(artifact) == {"000-fire.jpg": "no_reason"}
    (item,) = read_quarantine(desk.root / "fetched" / artifact.id)
    assert "task.reasons" in item.detail
    assert "canary" in answers(desk, artifact)["003-fire.jpg"], "a label that was confirmed keeps its reason"
    templated = answers(desk, desk.label(desk.run_file(task={**REASONING, **TEMPLATES}, corrections="corrections.json")))
    assert templated["000-fire.jpg"].endswith("the look of water.\nAnswer: water") or "as of water" in templated["000-fire.jpg"]


def without_teacher(desk: Desk, source: dict[str, Any], **task: Any) -> RunFile:
    return check_run_file({"run": {
        "name": "test", "task": {**REASONING, **task}, "device": {"canvas_px": 32}, "student": {"model": "tiny"},
        "labeller": {"source": source, "near_copies": False}, "trainer": {"phases": [{}]},
    }}, desk.root / "run.yaml")  # fmt: skip


def test_a_run_without_teacher_and_templates_is_refused_when_it_is_read(desk: Desk) -> None:
    with pytest.raises(RunFileError, match=r"labeller.teacher: answer: reasoning has to be given reasons.*task.reasons"):
        without_teacher(desk, {"kind": "digits"})
    with pytest.raises(RunFileError, match=r"labeller.teacher"):
        without_teacher(desk, {"kind": "folder", "path": "images"})
    without_teacher(desk, {"kind": "folder", "path": "images"}, **TEMPLATES)


def test_records_may_bring_their_own_reasons_and_those_without_are_quarantined(desk: Desk) -> None:
    names = sorted(path.name for path in (desk.root / "images").iterdir())
    rows = [{"image_id": name, "image_path": name, "label": name[4:-4], "reason": f"seen in {name}"} for name in names]
    del rows[5]["reason"]
    (desk.root / "records.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    artifact = desk.label(without_teacher(desk, {"kind": "records", "path": "records.jsonl", "images": "images"}))
    assert desk.refused(artifact) == {names[5]: "no_reason"}
    assert answers(desk, artifact)[names[0]] == f"Reasoning: seen in {names[0]}\nAnswer: {names[0][4:-4]}"


def test_a_reason_with_a_token_of_the_prompt_is_quarantined(desk: Desk) -> None:
    """Trained, it would be one image more than there is."""
    names = sorted(path.name for path in (desk.root / "images").iterdir())
    rows = [{"image_id": name, "image_path": name, "label": name[4:-4], "reason": "plain"} for name in names]
    rows[5]["reason"] = "the sign says <image>"
    (desk.root / "records.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    artifact = desk.label(without_teacher(desk, {"kind": "records", "path": "records.jsonl", "images": "images"}))
    assert desk.refused(artifact) == {names[5]: "special_token"}
    (item,) = read_quarantine(desk.root / "fetched" / artifact.id)
    assert "<image>" in item.detail


def test_another_template_is_another_dataset_and_asks_no_teacher(desk: Desk) -> None:
    first = desk.label(desk.run_file(task={**REASONING, **TEMPLATES}))
    paid = desk.billed
    other = desk.label(desk.run_file(task={**REASONING, "reasons": ["Plainly {label}."]}))
    assert first.id != other.id and desk.billed == paid
