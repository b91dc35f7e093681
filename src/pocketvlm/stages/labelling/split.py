"""Train, validation and test: stratified by label, decided by content, all copies of one image on one side."""

from __future__ import annotations

import hashlib
from bisect import bisect_left
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

    No index is in two groups, and the members of a group have one label.
    Each class' groups stand in the order of the key of their smallest hash and are cut at the cumulated shares, so a
    class is split exactly to within one group, and a new image moves no other but the few at the cuts. A class of at
    least three groups has one in each split. Raises DataError naming the classes that have fewer.
    """
    by_class: dict[str, list[Sequence[int]]] = {name: [] for name in classes}
    for group in groups:
        by_class[labels[group[0]]].append(group)
    _check_classes(by_class)
    splits = [""] * len(shas)
    for own in by_class.values():
        ordered = sorted(own, key=lambda group: order_key(split.seed, min(shas[index] for index in group)))
        for group, name in zip(ordered, _cut([len(group) for group in ordered], split), strict=True):
            for index in group:
                splits[index] = name
    return splits


def _check_classes(by_class: dict[str, list[Sequence[int]]]) -> None:
    lines = []
    for name, groups in by_class.items():
        if len(groups) < len(SPLITS):
            images = sum(len(group) for group in groups)
            lines.append(f"class {name}: {images} usable images, {len(groups)} of them different; "
                         "train, validation and test need one each")
    if lines:
        raise DataError("\n".join([*lines, "add images of these classes, or remove them from run.task.classes"]))


def _cut(sizes: list[int], split: Split) -> list[str]:
    """Names of splits for groups of these sizes, in order; a group goes where its middle lies."""
    total, before, middles = sum(sizes), 0, []
    for size in sizes:
        middles.append((before + size / 2) / total)
        before += size
    first = min(max(bisect_left(middles, split.train), 1), len(sizes) - 2)
    second = min(max(bisect_left(middles, split.train + split.validation), first + 1), len(sizes) - 1)
    return [SPLITS[0]] * first + [SPLITS[1]] * (second - first) + [SPLITS[2]] * (len(sizes) - second)
