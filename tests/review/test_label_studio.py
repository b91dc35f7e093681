"""Label Studio out and in. What it exports is made here from the tasks that we wrote, in the shape of its JSON and JSON-MIN."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as xml

import pytest

from pocketvlm.artifacts.corrections import NONE, read_corrections
from pocketvlm.errors import UserError
from pocketvlm.review.label_studio import write_label_studio

CLASSES = ["fire", "land", "metal", "water", "wood"]


def tasks_of(labelled: Any, folder: Path) -> list[dict[str, Any]]:
    write_label_studio(labelled.run_file, labelled.environment, folder, images=100)
    found: list[dict[str, Any]] = json.loads((folder / "tasks.json").read_text())
    return found


def annotated(number: int, task: dict[str, Any], label: str, note: str = "") -> dict[str, Any]:
    """A task as Label Studio gives it back: ids, dates and people added, data and predictions as they were."""
    result = [{"value": {"choices": [label]}, "id": "Dx_aB91ISN", "from_name": "label", "to_name": "image", "type": "choices",
               "origin": "manual"}]  # fmt: skip
    if note:
        result.append({"value": {"text": [note]}, "id": "a1", "from_name": "note", "to_name": "image", "type": "textarea"})
    annotation = {
        "id": 1000 + number, "completed_by": 1, "result": result, "was_cancelled": False, "ground_truth": False,
        "created_at": "2026-11-20T10:00:00.000000Z", "updated_at": "2026-11-20T10:00:01.000000Z", "lead_time": 4.288,
        "prediction": {}, "result_count": 0, "unique_id": "f1f8", "task": number, "project": 83, "parent_prediction": 7,
    }  # fmt: skip
    return {
        "id": number, "annotations": [annotation], "file_upload": "3f9c0a1b-tasks.json", "drafts": [], "predictions": [7],
        "data": task["data"], "meta": {}, "created_at": "2026-11-20T09:00:00.000000Z", "inner_id": number, "total_annotations": 1,
        "cancelled_annotations": 0, "total_predictions": 1, "project": 83, "updated_by": 1, "comment_authors": [],
    }  # fmt: skip


def flat(task: dict[str, Any]) -> dict[str, Any]:
    """The same as JSON-MIN has it: the data, and a choice or a text by its name."""
    annotation = task["annotations"][0]
    values = {result["from_name"]: next(iter(result["value"].values())) for result in annotation["result"]}
    chosen = {name: value[0] if len(value) == 1 else {"choices": value} for name, value in values.items()}
    return {**task["data"], "id": task["id"], **chosen, "annotator": 1, "annotation_id": annotation["id"], "lead_time": 4.288,
            "created_at": annotation["created_at"], "updated_at": annotation["updated_at"]}  # fmt: skip


def save(folder: Path, tasks: list[dict[str, Any]]) -> Path:
    path = folder / "export.json"
    path.write_text(json.dumps(tasks))
    return path


def test_tasks_hold_the_picture_and_the_label_as_a_prediction(elements: Any, tmp_path: Path) -> None:
    tasks = tasks_of(elements, tmp_path / "ls")
    assert len(tasks) == 30
    data, (prediction,) = tasks[0]["data"], tasks[0]["predictions"]
    assert data["image"].startswith("data:image/png;base64,")
    assert (data["was"], data["source_id"]) == ("water", "water/0000.jpg")
    assert data["known"] == "water, confidence 0.40, 2 of 3 votes"
    assert (prediction["model_version"], prediction["score"]) == ("gpt-4o", 0.4)
    (result,) = prediction["result"]
    assert (result["type"], result["value"]) == ("choices", {"choices": ["water"]})
    config = xml.parse(tmp_path / "ls" / "labels.xml").getroot()
    tags = {tag.get("name"): tag for tag in config.iter() if tag.get("name")}
    assert tags[result["from_name"]].tag == "Choices"
    assert tags[result["from_name"]].get("toName") == result["to_name"] == tags["image"].get("name")
    assert {tag.get("value", "")[1:] for tag in config.iter() if tag.get("value", "").startswith("$")} <= set(data)


def test_the_interface_offers_every_class_and_none_of_these(hostile: Any, tmp_path: Path) -> None:
    tasks_of(hostile, tmp_path / "ls")
    offered = [choice.get("value") for choice in xml.parse(tmp_path / "ls" / "labels.xml").iter("Choice")]
    assert offered == [*hostile.run_file.run.task.classes, "None of these"]


@pytest.mark.parametrize("shape", [lambda task: task, flat], ids=["JSON", "JSON-MIN"])
def test_what_label_studio_exports_is_read_back(elements: Any, tmp_path: Path, shape: Any) -> None:
    tasks = tasks_of(elements, tmp_path / "ls")
    said = ["water", "fire", "None of these"]
    export = [annotated(number, task, label, "blurred") for number, (task, label) in enumerate(zip(tasks, said, strict=False), 1)]
    found = read_corrections(save(tmp_path, [shape(task) for task in export]), CLASSES)
    shas = [task["data"]["sha256"] for task in tasks]
    assert [found.label(sha256) for sha256 in shas[:4]] == ["water", "fire", NONE, None]
    first = next(iter(found))
    assert (first.was, first.source_id, first.note) == ("water", "water/0000.jpg", "blurred")


def test_tasks_that_were_skipped_or_not_annotated_are_not_looked_at(elements: Any, tmp_path: Path) -> None:
    tasks = tasks_of(elements, tmp_path / "ls")[:4]
    first, second, third, fourth = (annotated(number, task, "fire") for number, task in enumerate(tasks, 1))
    second["annotations"][0]["was_cancelled"] = True
    third["annotations"] = []
    fourth["annotations"][0]["result"] = []
    assert len(read_corrections(save(tmp_path, [first, second, third, fourth]), CLASSES)) == 1


def test_where_annotators_differ_the_ground_truth_decides(elements: Any, tmp_path: Path) -> None:
    task = annotated(1, tasks_of(elements, tmp_path / "ls")[0], "fire")
    task["annotations"].append(annotated(1, task, "wood")["annotations"][0])
    with pytest.raises(UserError, match=r"task 1: water/0000.jpg is wood, and fire in task 1; .* mark one as ground truth"):
        read_corrections(save(tmp_path, [task]), CLASSES)
    task["annotations"][1]["ground_truth"] = True
    assert read_corrections(save(tmp_path, [task]), CLASSES).label(task["data"]["sha256"]) == "wood"


def test_an_export_without_our_choice_says_which_interface_to_use(elements: Any, tmp_path: Path) -> None:
    task = annotated(1, tasks_of(elements, tmp_path / "ls")[0], "fire")
    task["annotations"][0]["result"][0]["from_name"] = "choice"
    with pytest.raises(UserError, match=r"no task has an annotation named `label`.*labels\.xml"):
        read_corrections(save(tmp_path, [task]), CLASSES)


def test_two_choices_for_one_image_are_refused(elements: Any, tmp_path: Path) -> None:
    task = annotated(1, tasks_of(elements, tmp_path / "ls")[0], "fire")
    task["annotations"][0]["result"][0]["value"]["choices"] = ["fire", "wood"]
    for shape in (task, flat(task)):
        with pytest.raises(UserError, match=r"task 1: .*fire.*wood.* is not in run\.task\.classes"):
            read_corrections(save(tmp_path, [shape]), CLASSES)


def test_a_folder_that_cannot_be_written_is_named(elements: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="say another folder with --label-studio DIR"):
        write_label_studio(elements.run_file, elements.environment, tmp_path / "file", images=10)


def test_fields_are_a_text_to_correct_and_null_where_none_fit(plates: Any, tmp_path: Path) -> None:
    tasks = tasks_of(plates, tmp_path / "ls")
    (area,) = [node for node in xml.parse(tmp_path / "ls" / "labels.xml").iter("TextArea") if node.get("name") == "label"]
    assert area.get("required") == "true"
    assert tasks[0]["predictions"][0]["result"][0]["value"] == {"text": [tasks[0]["data"]["was"]]}
    texts = ['{"title": "x", "is_food": "1", "items": [], "hot": true}', "null"]
    export = []
    for number, (task, text) in enumerate(zip(tasks, texts, strict=False)):
        done = annotated(number, task, "")
        done["annotations"][0]["result"][0] |= {"type": "textarea", "value": {"text": [text]}}
        export.append(done)
    for shape in (export, [flat(task) for task in export]):
        found = read_corrections(save(tmp_path, shape), [], plates.run_file.run.task.fields)
        said = [found.label(task["data"]["sha256"]) for task in tasks[:3]]
        assert said == ['{"is_food":1,"title":"x","items":[],"hot":true}', NONE, None]
