"""The labeller on an `extract` task: fields from a source or a teacher, and the dataset that comes of them."""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from desks import PRICE, Desk
from fake_answers import Question, Speaker
from fake_teacher import FakeTeacher
from PIL import Image
from plates import DEVICE, TASK, content_of, draw, write_plates

from pocketvlm.artifacts.artifact import Artifact
from pocketvlm.artifacts.corrections import FORMAT
from pocketvlm.artifacts.dataset import SPLITS, read_quarantine, read_split
from pocketvlm.artifacts.folder import FolderStore
from pocketvlm.environment import Environment
from pocketvlm.errors import DataError, RunFileError
from pocketvlm.progress import Progress
from pocketvlm.run_file import RunFile, check_run_file
from pocketvlm.stages.stage import run_stage

NAMES = [name for field in TASK["fields"] for name in field]


def compact(values: dict[str, Any]) -> str:
    return json.dumps({name: values[name] for name in NAMES}, separators=(",", ":"))


class Table:
    """Drawn plates on disk, and the labeller."""

    def __init__(self, root: Path) -> None:
        self.root, self.log = root, io.StringIO()

    def run_file(self, task: dict[str, Any] | None = None, **labeller: Any) -> RunFile:
        source = {"kind": "records", "path": "records.jsonl", **labeller.pop("source", {})}
        return check_run_file({"run": {
            "name": "plates", "task": {**TASK, **(task or {})}, "device": DEVICE, "student": {"model": "tiny"},
            "labeller": {"source": source, "near_copies": False, **labeller}, "trainer": {"phases": [{}]},
        }}, self.root / "run.yaml")  # fmt: skip

    def label(self, run_file: RunFile | None = None) -> Artifact:
        environment = Environment(POCKETVLM_SCRATCH=self.root / "scratch", POCKETVLM_THREADS=2)
        store, progress = FolderStore(self.root / "store"), Progress("labeller", self.log)
        artifact, _ = run_stage("labeller", run_file or self.run_file(), store, environment, progress)
        return artifact

    def open(self, artifact: Artifact) -> Path:
        return artifact.fetch(self.root / "fetched" / artifact.id)

    def refused(self, artifact: Artifact) -> dict[str, tuple[str, str]]:
        return {item.source_id: (item.reason, item.detail) for item in read_quarantine(self.open(artifact))}


@pytest.fixture
def table(tmp_path: Path) -> Table:
    return Table(tmp_path)


def test_a_label_is_compact_json_of_the_fields_in_order_and_the_answer_is_it(table: Table) -> None:
    records = {record["image_id"]: record for record in write_plates(table.root, 40)}
    artifact = table.label()
    found = {row.source_id: row for split in SPLITS for row in read_split(table.open(artifact), split)}
    assert found.keys() == records.keys()
    for name, row in found.items():
        assert row.label == row.answer == compact(records[name])
        assert row.question == TASK["question"] and row.variants == ()


def test_training_images_are_asked_in_other_words_too_and_only_they(table: Table) -> None:
    write_plates(table.root, 40)
    questions = [{"ask": "What is on it? As {{...}}"}, {"ask": "List it.", "answer": "It is {label}"}]
    artifact = table.label(table.run_file({"questions": questions, "questions_per_image": 2}))
    for split in SPLITS:
        for row in read_split(table.open(artifact), split):
            others = (("What is on it? As {...}", row.answer), ("List it.", f"It is {row.answer}"))
            assert row.variants == (others if split == "train" else ())


def test_the_dataset_opens_as_those_of_the_hub_do_and_has_no_class_labels(table: Table) -> None:
    from datasets import load_dataset

    write_plates(table.root, 30)
    folder = table.open(table.label())
    files = {split: [str(path) for path in folder.glob(f"{split}-*.parquet")] for split in SPLITS}
    opened = load_dataset("parquet", data_files=files, cache_dir=str(table.root / "cache"))
    assert "label_id" not in opened["train"].column_names
    assert opened["train"][0]["image"].size == (64, 64)
    assert json.loads(opened["train"][0]["label"]).keys() == set(NAMES)


def test_splits_have_their_share_of_every_value_of_a_closed_field(table: Table) -> None:
    records = write_plates(table.root, 140)
    artifact = table.label()
    counts = Counter()
    for split in SPLITS:
        for row in read_split(table.open(artifact), split):
            counts[split, json.loads(row.label)["is_food"]] += 1
    for value in (0, 1):
        total = sum(record["is_food"] == value for record in records)
        for split, share in zip(SPLITS, (0.7, 0.1, 0.2), strict=True):
            assert abs(counts[split, value] - share * total) <= 1
    assert artifact.facts["counts"] == {split: {"images": counts[split, 0] + counts[split, 1]} for split in SPLITS}
    assert f"labels: images {len(records)}" in table.log.getvalue()


def test_the_facts_count_values_list_lengths_and_different_texts(table: Table) -> None:
    records = write_plates(table.root, 60)
    fields = table.label().facts["fields"]
    assert [sum(row[1:]) for row in fields["is_food"]["values"]] == [sum(r["is_food"] == v for r in records) for v in (0, 1)]
    lengths = Counter(len(record["food_items"]) for record in records)
    assert {row[0]: sum(row[1:]) for row in fields["food_items"]["lengths"]} == lengths
    assert fields["drink_items"]["different"] == len({name for record in records for name in record["drink_items"]})
    assert fields["image_title"]["different"] == len({record["image_title"] for record in records})


def test_a_value_that_is_too_rare_for_every_split_is_split_with_the_others(table: Table) -> None:
    records = write_plates(table.root, 30)
    for record in records:
        record["is_food"] = int(record is not records[0])
    (table.root / "records.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    counts = table.label().facts["counts"]
    assert {split: count["images"] for split, count in counts.items()} == {"train": 21, "validation": 3, "test": 6}


def test_fewer_images_than_splits_are_wrong_data(table: Table) -> None:
    write_plates(table.root, 2)
    with pytest.raises(DataError, match="2 usable images, 2 of them different; train, validation and test need one each"):
        table.label()


def test_two_copies_with_different_fields_contradict_each_other(table: Table) -> None:
    records = write_plates(table.root, 12)
    image = Image.open(table.root / records[3]["image_path"])
    image.resize((64, 64)).save(table.root / "images" / "copy.jpg", quality=97, subsampling=0)
    records.append({**records[3], "image_id": "copy", "image_path": "images/copy.jpg", "image_title": "another"})
    (table.root / "records.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    refused = table.refused(table.label(table.run_file(near_copies=True)))
    assert {refused["copy"][0], refused["plate-00003"][0]} == {"contradicting_labels"}
    assert '"image_title":"another"' in refused["plate-00003"][1]


def test_only_what_shapes_the_dataset_gives_it_another_id(table: Table) -> None:
    write_plates(table.root, 12)
    first = table.label()
    assert table.label(table.run_file({"system": "Be brief."})).id == first.id
    shorter = [{"is_food": TASK["fields"][0]["is_food"]}, {"image_title": {**TASK["fields"][1]["image_title"], "max_length": 50}},
               *TASK["fields"][2:]]  # fmt: skip
    assert table.label(table.run_file({"fields": shorter})).id != first.id
    assert table.label(table.run_file({"fields": [*TASK["fields"][::-1]]})).id != first.id


CLASSES = {"kind": "classify", "classes": {"a": "", "b": ""}, "question": "Which?"}
RECORDS = {"kind": "records", "path": "records.jsonl"}


@pytest.mark.parametrize(
    ("task", "labeller", "says"),
    [
        (TASK, {"source": RECORDS, "per_class": 3}, "per_class: only kind: classify has classes"),
        (TASK, {"source": RECORDS, "balance": 2}, "balance: only kind: classify has classes"),
        (TASK, {"source": {"kind": "digits"}}, "teacher: images of source digits have no fields"),
        (TASK, {"source": {"kind": "hub", "path": "x", "class_names": {"a": "b"}}}, "source.class_names: only kind: classify"),
        (CLASSES, {"source": {**RECORDS, "field_columns": {"a": "b"}}}, "source.field_columns: only kind: extract has fields"),
    ],
)
def test_a_key_that_means_nothing_to_the_task_is_refused(task: dict[str, Any], labeller: dict[str, Any], says: str) -> None:
    recipe = {"name": "x", "task": task, "student": {"model": "tiny"}, "labeller": labeller, "trainer": {"phases": [{}]}}
    with pytest.raises(RunFileError, match=f"run: labeller.{says}"):
        check_run_file({"run": recipe}, Path("run.yaml"))


class Waiter(Speaker):
    """Says of a picture what `contents` has for its sha256, and for other votes what `others` has."""

    def __init__(self, contents: list[dict[str, Any]]) -> None:
        super().__init__(waver=0.0)
        object.__setattr__(self, "contents", contents)
        object.__setattr__(self, "order", {})

    def say(self, question: Question, schema: dict[str, Any]) -> Any:
        contents: list[dict[str, Any]] = self.contents  # type: ignore[attr-defined]
        number: int = self.order.setdefault(question.sha256, len(self.order))  # type: ignore[attr-defined]
        vote = question.seed or 0
        values = contents[number % len(contents)]
        values = values[vote % len(values)] if isinstance(values, list) else values
        return {"reason": f"reason {number}", **values, "confidence": 0.9}


def plate(title: str = "apple", **changes: Any) -> dict[str, Any]:
    return {"is_food": 1, "image_title": title, "food_items": ["apple"], "drink_items": [], **changes}


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    import numpy as np

    with FakeTeacher() as teacher:
        desk = Desk(tmp_path, teacher)
        for number in range(8):
            dice = np.random.default_rng([9, number])
            draw(content_of(dice), dice).save(tmp_path / "images" / f"{number}.png")
        yield desk


def asked(desk: Desk, contents: list[Any], teacher: dict[str, Any] | None = None, **labeller: Any) -> Artifact:
    """One call at a time, so that the pictures are answered in their order."""
    desk.teacher.speaker = Waiter(contents)
    return desk.label(desk.run_file(teacher={"in_flight": 1, "image_px": 64, **(teacher or {})}, task=TASK, **labeller))


def test_a_teacher_fills_in_the_fields(desk: Desk) -> None:
    artifact = asked(desk, [plate(f"number {number}") for number in range(8)])
    rows = desk.rows(artifact)
    assert [rows[f"{number}.png"]["label"] for number in range(8)] == [compact(plate(f"number {n}")) for n in range(8)]
    row = rows["0.png"]
    assert (row["answer"], row["teacher_reason"], row["teacher_confidence"]) == (row["label"], "reason 0", 0.9)
    assert "label_id" not in row


def test_votes_for_equal_fields_are_counted_whatever_the_order_of_their_keys(desk: Desk) -> None:
    turned = dict(reversed(plate().items()))
    artifact = asked(desk, [[plate(), plate("pear"), turned]], {"votes": 3, "temperature": 1, "seed": 0})
    rows = desk.rows(artifact)
    assert {(row["label"], row["teacher_votes"]) for row in rows.values()} == {(compact(plate()), 2)}
    assert artifact.facts["agreement"] == pytest.approx(2 / 3)
    assert artifact.facts["field_agreement"] == pytest.approx(
        {"is_food": 1, "image_title": 2 / 3, "food_items": 1, "drink_items": 1}
    )


def test_little_agreement_and_little_confidence_are_refused_as_with_classes(desk: Desk) -> None:
    odd = [[plate("a"), plate("b"), plate("c")]] * 2 + [[plate()] * 3] * 6
    votes = {"votes": 3, "temperature": 1, "seed": 0}
    artifact = asked(desk, odd, votes, min_agreement=0.6)
    assert desk.refused(artifact) == {"0.png": "low_agreement", "1.png": "low_agreement"}
    with pytest.raises(DataError, match="8 low_confidence"):
        asked(desk, odd, votes, min_confidence=0.95)


def test_a_second_teacher_is_compared_field_by_field(desk: Desk) -> None:
    with FakeTeacher() as other:
        other.speaker = Waiter([plate("pear")])
        second = {"model": "other", "base_url": other.url, "price": PRICE, "image_px": 48, "votes": 2, "temperature": 1}
        opinion = asked(desk, [plate()], second_teacher=second).facts["second_opinion"]
    assert opinion == {
        "images": 8, "equal": 0, "fields": {"is_food": 1.0, "image_title": 0.0, "food_items": 1.0, "drink_items": 1.0},
    }  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"image_title": "x" * 61}, "image_title has a text of 61 characters and may have 60"),
        ({"food_items": list("abc")}, "food_items has 3 texts and may have 2"),
        ({"food_items": ["x" * 13]}, "food_items has a text of 13 characters and may have 12"),
    ],
)
def test_an_answer_beyond_its_limits_is_quarantined_and_never_cut(desk: Desk, changes: dict[str, Any], says: str) -> None:
    contents: list[Any] = [plate(f"number {number}") for number in range(8)]
    contents[2] = plate(**changes)
    artifact = asked(desk, contents)
    assert desk.refused(artifact) == {"2.png": "teacher_invalid"}
    (item,) = read_quarantine(desk.root / "fetched" / artifact.id)
    assert says in item.detail
    assert desk.billed == 9, "it is asked to repair it, once"


def test_the_teacher_is_told_the_limits(desk: Desk) -> None:
    from pocketvlm.teacher.question import TeacherQuestion

    run_file = desk.run_file(task=TASK)
    assert run_file.run.labeller.teacher is not None
    question = TeacherQuestion(run_file.run.labeller.teacher, run_file.run.task, desk.root)
    assert "food_items (list, at most 2 texts, at most 12 characters each)" in question.system


def test_a_person_corrects_fields_and_their_word_wins(desk: Desk) -> None:
    first = desk.rows(asked(desk, [plate(f"number {number}") for number in range(8)]))
    shas = {name: row["sha256"] for name, row in first.items()}
    items = [
        {"sha256": shas["0.png"], "label": json.dumps(plate("by hand"), indent=1)},
        {"sha256": shas["1.png"], "label": None},
        {"sha256": shas["2.png"], "label": plate("number 2")},
    ]
    (desk.root / "corrections.json").write_text(json.dumps({"format": FORMAT, "items": items}))
    artifact = asked(desk, [], corrections="corrections.json")
    rows = desk.rows(artifact)
    assert (rows["0.png"]["label"], rows["0.png"]["labelled_by"]) == (compact(plate("by hand")), "person")
    assert desk.refused(artifact) == {"1.png": "corrected_to_none"}
    checked = artifact.facts["corrections"]
    assert (checked["images"], checked["right"]) == (3, 1) and "confusion" not in checked
    assert checked["fields"] == {"is_food": 1.0, "image_title": 0.5, "food_items": 1.0, "drink_items": 1.0}


def test_a_correction_that_is_no_label_says_where_and_why(desk: Desk) -> None:
    items = [{"sha256": "0" * 64, "label": plate(is_food=2)}, {"sha256": "1" * 64, "label": "{"}]
    (desk.root / "corrections.json").write_text(json.dumps({"format": FORMAT, "items": items}))
    with pytest.raises(RunFileError) as caught:
        asked(desk, [plate()], corrections="corrections.json")
    lines = str(caught.value).splitlines()
    assert "items[0]" in lines[0] and "is_food is or holds 2" in lines[0]
    assert "items[1]" in lines[1] and "run.task.fields" in lines[1]
