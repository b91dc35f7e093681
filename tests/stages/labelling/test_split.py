from __future__ import annotations

import hashlib
from collections import Counter

import pytest

from pocketvlm.errors import DataError
from pocketvlm.run_file import Split
from pocketvlm.stages.labelling.split import assign_splits

CLASSES = ["fire", "water"]


def sha(index: int) -> str:
    return hashlib.sha256(str(index).encode()).hexdigest()


def singles(count: int) -> tuple[list[list[int]], list[str], list[str]]:
    """Groups of one, hashes, and labels: two thirds fire."""
    return [[i] for i in range(count)], [sha(i) for i in range(count)], [CLASSES[i % 3 == 0] for i in range(count)]


@pytest.mark.parametrize("count", [30, 300, 1797])
def test_every_class_is_split_exactly_to_within_one_image(count: int) -> None:
    groups, shas, labels = singles(count)
    split = Split(train=0.7, validation=0.1, test=0.2)
    found = Counter(zip(labels, assign_splits(groups, shas, labels, CLASSES, split), strict=True))
    for name in CLASSES:
        for side in ("train", "validation", "test"):
            assert abs(found[name, side] - getattr(split, side) * labels.count(name)) <= 1


def test_an_image_of_no_group_has_no_split() -> None:
    groups, shas, labels = singles(30)
    splits = assign_splits([group for group in groups if group != [7]], shas, labels, CLASSES, Split())
    assert [index for index, split in enumerate(splits) if not split] == [7]


def test_groups_stay_on_one_side_and_shares_hold_to_within_a_group() -> None:
    _, shas, labels = singles(600)
    labels = ["fire"] * 300 + ["water"] * 300
    groups = [list(range(start, start + 5)) for start in range(0, 600, 5)]
    splits = assign_splits(groups, shas, labels, CLASSES, Split())
    assert all(len({splits[i] for i in group}) == 1 for group in groups)
    assert abs(splits.count("train") - 420) <= 10


def test_split_depends_on_content_and_seed_and_not_on_order() -> None:
    groups, shas, labels = singles(200)
    forward = dict(zip(shas, assign_splits(groups, shas, labels, CLASSES, Split()), strict=True))
    backward = dict(zip(shas[::-1], assign_splits(groups, shas[::-1], labels[::-1], CLASSES, Split()), strict=True))
    other_seed = dict(zip(shas, assign_splits(groups, shas, labels, CLASSES, Split(seed=1)), strict=True))
    assert forward == backward
    assert sum(forward[key] != other_seed[key] for key in forward) > 50


def test_one_more_image_moves_at_most_one_other_at_each_cut() -> None:
    groups, shas, labels = singles(301)
    fewer = assign_splits(groups[:300], shas[:300], labels[:300], CLASSES, Split())
    more = assign_splits(groups, shas, labels, CLASSES, Split())
    assert sum(one != other for one, other in zip(fewer, more[:300], strict=True)) <= 2


@pytest.mark.parametrize("count", [3, 4, 5, 6])
def test_smallest_classes_have_an_image_in_every_split(count: int) -> None:
    shas, labels = [sha(i) for i in range(2 * count)], ["fire", "water"] * count
    splits = assign_splits([[i] for i in range(2 * count)], shas, labels, CLASSES, Split())
    assert Counter(zip(labels, splits, strict=True)).keys() == {
        (name, side) for name in CLASSES for side in ("train", "validation", "test")
    }


def test_class_that_cannot_fill_every_split_is_named_with_its_count() -> None:
    labels = ["fire"] * 5 + ["water"] * 4
    groups = [[0], [1], [2], [3], [4], [5, 6, 7], [8]]
    with pytest.raises(DataError, match="class water: 4 usable images, 2 of them different"):
        assign_splits(groups, [sha(i) for i in range(9)], labels, CLASSES, Split())


def test_groups_of_several_labels_stay_whole_and_classes_are_split_nearly_as_if_they_were_not() -> None:
    count = 300  # an arrow to the left and its mirror image, an arrow to the right
    groups = [[index, index + count] for index in range(count)]
    labels = ["fire"] * count + ["water"] * count
    split = Split(train=0.7, validation=0.1, test=0.2)
    splits = assign_splits(groups, [sha(i) for i in range(2 * count)], labels, CLASSES, split)
    assert all(len({splits[i] for i in group}) == 1 for group in groups)
    for name in CLASSES:
        for side in ("train", "validation", "test"):
            own = sum(label == name and where == side for label, where in zip(labels, splits, strict=True))
            assert abs(own - getattr(split, side) * count) <= 2


def test_class_that_is_only_in_groups_of_other_classes_is_in_every_split() -> None:
    shas = ["0" * 60 + f"{i:04x}" for i in range(50)] + ["f" * 60 + f"{i:04x}" for i in range(3)]
    for first in range(44):  # whichever three groups it is in
        groups = [[index] for index in range(50)]
        for place in range(3):
            groups[first + 3 * place].append(50 + place)
        labels = ["fire"] * 50 + ["water"] * 3
        splits = assign_splits(groups, shas, labels, CLASSES, Split())
        assert all(len({splits[i] for i in group}) == 1 for group in groups)
        assert sorted(splits[50:]) == ["test", "train", "validation"]
        assert abs(splits[:50].count("train") - 35) <= 2


def test_classes_too_entangled_to_fill_every_split_are_named() -> None:
    # Six classes, each in one group of its own and in two of four others: any two of the four have a class in common,
    # so that they would need four splits.
    classes = ["ab", "ac", "ad", "bc", "bd", "cd"]
    labels = [name for letter in "abcd" for name in classes if letter in name] + classes
    groups = [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9, 10, 11], *([index] for index in range(12, 18))]
    with pytest.raises(DataError, match=r"class .*: no image for (train|validation|test); .*near_copies to false"):
        assign_splits(groups, [sha(i) for i in range(18)], labels, classes, Split())
