"""Which images a person is shown, and in which order."""

from __future__ import annotations

import base64
import io
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from pocketvlm.artifacts.dataset import Row
from pocketvlm.errors import UserError
from pocketvlm.review.sample import choose, take_sample


def row(number: int, label: str = "water", confidence: float | None = 0.9, votes: int | None = None) -> tuple[str, Row]:
    values: dict[str, Any] = {"teacher_confidence": confidence, "teacher_votes": votes}
    return "train", Row(label, label, "Which?", f"{number:064x}", "0" * 16, "folder", f"{number}.jpg", **values)


def numbers(rows: list[tuple[str, Row]]) -> list[int]:
    return [int(item.sha256, 16) for _, item in rows]


def test_the_least_certain_come_first_and_votes_then_hashes_decide_between_equals() -> None:
    rows = [row(1, confidence=0.9), row(2, confidence=0.3, votes=3), row(3, confidence=0.3, votes=2), row(5), row(4)]
    assert numbers(choose(rows, ["water"], 10)) == [3, 2, 1, 4, 5]


def test_what_has_no_confidence_comes_last() -> None:
    assert numbers(choose([row(1, confidence=None), row(2, confidence=0.99)], ["water"], 10)) == [2, 1]


def test_every_class_is_seen_however_certain_its_labels_are() -> None:
    unsure, sure = [row(number, "water", 0.2) for number in range(50)], [row(100 + number, "land", 0.99) for number in range(50)]
    rows = [*unsure, *sure, row(200, "fire", 1.0)]
    chosen = choose(rows, ["fire", "land", "water"], 12)
    assert Counter(item.label for _, item in chosen) == {"water": 9, "land": 2, "fire": 1}


def test_fewer_images_than_classes_are_the_least_certain_of_different_classes() -> None:
    rows = [row(1, "a", 0.9), row(2, "b", 0.3), row(3, "b", 0.4), row(4, "c", 0.6)]
    assert numbers(choose(rows, ["a", "b", "c"], 2)) == [2, 4]


def test_the_choice_does_not_depend_on_the_order_of_the_rows() -> None:
    rows = [row(number, "ab"[number % 2], (number * 37 % 100) / 100) for number in range(400)]
    assert choose(rows, ["a", "b"], 20) == choose(rows[::-1], ["a", "b"], 20)


def test_all_splits_are_looked_at_and_each_image_comes_with_its_own_picture(elements: Any) -> None:
    sample = take_sample(elements.run_file, elements.environment, 100)
    assert {item.split for item in sample.items} == {"train", "validation", "test"}
    assert (len(sample.items), sample.images_total, sample.votes) == (30, 30, 3)
    assert len({item.picture for item in sample.items}) == 30
    assert [item.row.teacher_confidence for item in sample.items] == sorted(0.4 + number / 50 for number in range(30))


def test_large_pictures_become_jpegs_that_look_the_same(make_labelled: Any, new_row: Any) -> None:
    made = make_labelled([new_row(number, "water") for number in range(3)], ["land", "water"], side_px=800)
    item = take_sample(made.run_file, made.environment, 1).items[0]
    head, data = item.picture.split(",")
    assert head == "data:image/jpeg;base64"
    with Image.open(io.BytesIO(base64.b64decode(data))) as image:
        assert image.size == (768, 768)
    assert len(data) < 250_000


def test_a_run_whose_labeller_has_not_finished_has_nothing_to_look_at(make_labelled: Any, new_row: Any) -> None:
    made = make_labelled([new_row(number, "water") for number in range(6)], ["land", "water"], finished=False)
    with pytest.raises(UserError, match=r"has no dataset.*run `pocketvlm stage labeller RUN` first"):
        take_sample(made.run_file, made.environment, 10)


def test_a_sample_of_no_images_is_refused(elements: Any) -> None:
    with pytest.raises(UserError, match="--images 0"):
        take_sample(elements.run_file, elements.environment, 0)


def test_nothing_is_left_in_the_scratch_folder(elements: Any, tmp_path: Path) -> None:
    take_sample(elements.run_file, elements.environment, 10)
    assert list((tmp_path / "scratch").iterdir()) == []
