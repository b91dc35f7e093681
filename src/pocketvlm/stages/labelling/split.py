"""Train, validation and test: stratified by label, decided by content, all copies of one image on one side."""

from __future__ import annotations

import hashlib
from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence

from pocketvlm.artifacts.dataset import SPLITS
from pocketvlm.errors import DataError
from pocketvlm.run_file import Split


def order_key(seed: int, sha256: str) -> str:
    """Where an image stands: as good as random, but decided by its bytes and the seed alone."""
    return hashlib.sha256(f"{seed}:{sha256}".encode()).hexdigest()


def assign_splits(
    groups: Sequence[Sequence[int]], shas: Sequence[str], labels: Sequence[str], classes: Sequence[str], split: Split
) -> list[str]:
    """The split of each image that is in a group, and "" for the others, which are in quarantine.

    No index is in two groups. A group of several labels (an arrow and its mirror image) counts to the class of the
    member with the smallest hash, and is assigned whole. The groups that count to a class stand in the order of the key
    of that hash and are cut at the cumulated shares: the class' images in them are split exactly to within one group,
    those in other classes' groups as these fall. A new image moves no other but the few at the cuts.
    Every class with images in at least three groups has one in each split: three groups of its own see to that, and
    else single groups are moved. Raises DataError naming the classes that are in fewer groups, or in groups so
    entangled that no single move helps.
    """
    _check_classes(groups, labels, classes)
    lead_of = [min(group, key=shas.__getitem__) for group in groups]
    key_of = [order_key(split.seed, shas[lead]) for lead in lead_of]
    by_class: dict[str, list[int]] = {name: [] for name in classes}
    for place in sorted(range(len(groups)), key=key_of.__getitem__):
        by_class[labels[lead_of[place]]].append(place)
    side_of = [""] * len(groups)
    for name, own in by_class.items():
        sizes = [sum(labels[index] == name for index in groups[place]) for place in own]
        for place, side in zip(own, _cut(sizes, split), strict=True):
            side_of[place] = side
    _fill(side_of, [{labels[index] for index in group} for group in groups], key_of, classes)
    splits = [""] * len(shas)
    for group, side in zip(groups, side_of, strict=True):
        for index in group:
            splits[index] = side
    return splits


def _check_classes(groups: Sequence[Sequence[int]], labels: Sequence[str], classes: Sequence[str]) -> None:
    images = Counter(labels[index] for group in groups for index in group)
    different = Counter(name for group in groups for name in {labels[index] for index in group})
    lines = [
        f"class {name}: {images[name]} usable images, {different[name]} of them different; "
        "train, validation and test need one each"
        for name in classes
        if different[name] < len(SPLITS)
    ]
    if lines:
        raise DataError("\n".join([*lines, "add images of these classes, or remove them from run.task.classes"]))


def _fill(side_of: list[str], names_of: list[set[str]], key_of: list[str], classes: Sequence[str]) -> None:
    """Moves groups, in place, until each class is in each split; from where another group has the same classes too."""
    held = Counter((name, side) for names, side in zip(names_of, side_of, strict=True) for name in names)
    for name, side in ((name, side) for name in classes for side in SPLITS):
        if held[name, side]:
            continue
        spare = [
            place for place, names in enumerate(names_of)
            if name in names and all(held[other, side_of[place]] > 1 for other in names)
        ]  # fmt: skip
        if not spare:
            raise DataError(
                f"class {name}: no image for {side}; nearly all are copies of other classes' images, mirrored or cut, "
                "and those must not be parted. Add images of this class, or set run.labeller.near_copies to false"
            )
        moved = min(spare, key=key_of.__getitem__)
        for other in names_of[moved]:
            held[other, side_of[moved]] -= 1
            held[other, side] += 1
        side_of[moved] = side


def _cut(sizes: list[int], split: Split) -> list[str]:
    """Names of splits for groups of these sizes, in order; a group goes where its middle lies.

    Of three groups or more, each split has one.
    """
    total, before, middles = sum(sizes), 0, []
    for size in sizes:
        middles.append((before + size / 2) / total)
        before += size
    first, second = bisect_left(middles, split.train), bisect_left(middles, split.train + split.validation)
    if len(sizes) >= len(SPLITS):
        first = min(max(first, 1), len(sizes) - 2)
        second = min(max(second, first + 1), len(sizes) - 1)
    return [SPLITS[0]] * first + [SPLITS[1]] * (second - first) + [SPLITS[2]] * (len(sizes) - second)
