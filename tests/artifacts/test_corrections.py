"""The file of corrections: what is read, what is refused, and how right the labels were."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from pocketvlm.artifacts.corrections import FORMAT, NONE, Corrections, accuracy_of, none_choice, read_corrections
from pocketvlm.errors import RunFileError

CLASSES = ["land", "water", "wild fire"]


def item(number: int, label: Any, **more: Any) -> dict[str, Any]:
    return {"sha256": f"{number:064x}", "source_id": f"{number}.jpg", "label": label, "was": "land", "note": "", **more}


def write(folder: Path, *items: Any, **more: Any) -> Path:
    path = folder / "corrections.json"
    path.write_text(json.dumps({"format": FORMAT, "run": "elements-0123abcd", "dataset": "0" * 16, "items": list(items), **more}))
    return path


def read(folder: Path, *items: Any, **more: Any) -> Corrections:
    return read_corrections(write(folder, *items, **more), CLASSES)


def refusal(path: Path) -> str:
    with pytest.raises(RunFileError) as caught:
        read_corrections(path, CLASSES)
    text = str(caught.value)
    assert all(line.startswith(f"run.labeller.corrections: {path}: ") for line in text.splitlines())
    return text


def test_labels_are_found_by_the_sha256_of_the_image(tmp_path: Path) -> None:
    found = read(tmp_path, item(1, "water"), item(2, "land"), item(3, None))
    assert [found.label(f"{number:064x}") for number in (1, 2, 3, 4)] == ["water", "land", NONE, None]
    assert len(found) == 3


def test_class_names_are_found_whatever_their_case_and_white_space_are(tmp_path: Path) -> None:
    assert read(tmp_path, item(1, " Wild  FIRE")).label(f"{1:064x}") == "wild fire"


def test_images_of_another_sample_are_fine_and_counted(tmp_path: Path) -> None:
    assert read(tmp_path, item(1, "water"), item(2, "land"), item(3, "land")).unknown({f"{1:064x}"}) == 2


def test_the_fingerprint_follows_what_was_decided_and_nothing_else(tmp_path: Path) -> None:
    first = read(tmp_path, item(1, "water"), item(2, "land")).fingerprint()
    again = read(tmp_path, item(2, "land", note="blurred", was="water"), item(1, "Water"), run="other").fingerprint()
    assert first == again
    assert read(tmp_path, item(1, "water"), item(2, None)).fingerprint() != first
    assert read(tmp_path, item(1, "water")).fingerprint() != first


def test_a_label_that_is_no_class_is_refused_with_the_nearest_name(tmp_path: Path) -> None:
    text = refusal(write(tmp_path, item(1, "watr"), item(2, "land"), item(3, "quartz"), item(4, 7)))
    assert "items[0]: 'watr' is not in run.task.classes; did you mean `water`?" in text
    assert "items[2]: 'quartz' is not in run.task.classes; correct it" in text
    assert "items[3]: '7' is not in run.task.classes" in text


def test_many_problems_are_counted_and_not_all_listed(tmp_path: Path) -> None:
    lines = refusal(write(tmp_path, *(item(number, "quartz") for number in range(500)))).splitlines()
    assert len(lines) == 11
    assert lines[-1].endswith("and 490 more")


def test_one_image_under_two_labels_is_refused_and_the_same_label_twice_is_not(tmp_path: Path) -> None:
    assert len(read(tmp_path, item(1, "water"), item(1, "water"))) == 1
    text = refusal(write(tmp_path, item(1, "water"), item(2, "land"), item(1, None)))
    assert "items[2]: 1.jpg is none, and water in items[0]; remove one of the two" in text


@pytest.mark.parametrize("broken", [{"sha256": "abc"}, {"sha256": None}, {"sha256": "A" * 64}, {"label": "water", "sha256": 5}])
def test_an_item_without_a_sha256_is_refused(broken: dict[str, Any], tmp_path: Path) -> None:
    assert "items[0]: sha256 is missing or not 64 hex digits" in refusal(write(tmp_path, {**item(1, "water"), **broken}))


def test_an_item_without_a_label_is_refused(tmp_path: Path) -> None:
    assert "items[0]: '' is not in run.task.classes" in refusal(write(tmp_path, {"sha256": "0" * 64}))


def test_another_format_names_the_one_that_is_read(tmp_path: Path) -> None:
    text = refusal(write(tmp_path, format="pocketvlm-corrections/2"))
    assert "'pocketvlm-corrections/2' where 'pocketvlm-corrections/1'" in text


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"{", "is not JSON"), (b"\xff\xfe", "is not JSON"), (b"[" * 100_000, "is not JSON"), (b"7", "holds neither"),
        (b"{}", "format is 'None'"), (b"[]", "no task has an annotation"), (b"[7, null, {}]", "no task has an annotation"),
        (b'[{"data": 7, "annotations": 7}]', "no task"), (b'[{"data": {}, "annotations": [7, {"result": 7}]}]', "no task"),
        (b'[{"annotations": [{"result": [{"from_name": "label", "value": 7}]}]}]', "sha256 is missing"),
        (b'{"format": "pocketvlm-corrections/1", "items": {}}', "with a list of items"),
        (b'{"format": "pocketvlm-corrections/1", "items": [null]}', "sha256 is missing"),
    ],
)  # fmt: skip
def test_what_is_no_such_file_is_refused_with_what_to_do(content: bytes, said: str, tmp_path: Path) -> None:
    path = tmp_path / "corrections.json"
    path.write_bytes(content)
    assert said in refusal(path)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    assert re.search(r"cannot be read \(.*\); name the file that `pocketvlm review` saved", refusal(tmp_path / "gone.json"))


def test_accuracy_counts_confirmed_and_corrected_images() -> None:
    pairs: list[tuple[str | None, str]] = [("water", "water")] * 7 + [("water", "land")] * 2 + [("land", NONE), (None, "land")]
    facts = accuracy_of(pairs)
    assert (facts["images"], facts["right"], facts["accuracy"], facts["unanswered"]) == (10, 7, 0.7, 1)
    assert facts["interval"] == pytest.approx([0.3968, 0.8922], abs=5e-5)  # Wilson, 7 of 10
    assert facts["confusion"] == [["land", NONE, 1], ["water", "land", 2], ["water", "water", 7]]
    assert json.loads(json.dumps(facts)) == facts


def test_a_label_that_said_none_is_right_when_the_person_says_so_too() -> None:
    assert accuracy_of([(NONE, NONE), (NONE, "water")])["accuracy"] == 0.5


def test_accuracy_of_nothing_is_not_known() -> None:
    assert accuracy_of([])["accuracy"] is None
    assert accuracy_of([])["interval"] == [0.0, 1.0]


def test_label_studios_choice_for_none_is_no_class() -> None:
    assert none_choice(["water"]) == "None of these"
    assert none_choice(["water", "none of  these"]) == "[None of these]"
