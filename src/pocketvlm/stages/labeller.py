"""The labeller: images and labels of a source -> a dataset on the device's canvas, split, with what it refused.

Every image is decoded once. What cannot be used is quarantined with a reason; only a set that cannot be split at all
fails the stage. Decoding is shared between processes; copies, splits and Parquet are the work of whoever ends last.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from pocketvlm.artifacts.dataset import SPLITS, Quarantined, Row, write_quarantine, write_split
from pocketvlm.environment import Shard
from pocketvlm.errors import DataError
from pocketvlm.run_file import Recipe
from pocketvlm.sources.images import strict_pillow
from pocketvlm.sources.open import open_source
from pocketvlm.sources.record import Problem, Record, SourceReader
from pocketvlm.stages.labelling.copies import group_copies
from pocketvlm.stages.labelling.pieces import PieceWriter, Spool, read_share
from pocketvlm.stages.labelling.prepared import Prepared, prepare
from pocketvlm.stages.labelling.split import assign_splits, order_key
from pocketvlm.stages.sharing import Piece, Share
from pocketvlm.stages.stage import Made, Work

KIND = "datasets"
INPUTS: tuple[str, ...] = ()
SHARED = True
PIECE_RECORDS = 512
"""Saved at once: some 5 s of work on two cores, and one object of 30 MB at a canvas of 256 px."""

In = TypeVar("In")
Out = TypeVar("Out")


def settings(recipe: Recipe, folder: Path) -> dict[str, Any]:
    """All that determines the dataset. Paths do not: the id follows the content that they lead to.

    Reads every byte of the source once. Raises as `open_source` does.
    """
    labeller, device = recipe.labeller, recipe.device
    values: dict[str, Any] = {
        "source": labeller.source.model_dump(mode="json", exclude={"path", "images"}),
        "content": open_source(labeller.source, folder, list(recipe.task.classes)).fingerprint(),
        "classes": list(recipe.task.classes),
        "question": recipe.task.question,
        "answer": recipe.task.answer,
        "canvas_px": device.canvas_px,
        "min_confidence": labeller.min_confidence,
        "near_copies": labeller.near_copies,
        "max_pixels": labeller.max_pixels,
        "split": labeller.split.model_dump(mode="json"),
    }
    if device.canvas_px is None:  # only then it decides which images are too thin
        values["longest_edge_px"] = device.longest_edge_px
    return values


def make(work: Work) -> Made | None:
    """Writes the Parquet shards and quarantine.jsonl. Raises DataError when a class cannot fill every split."""
    recipe = work.recipe
    source = open_source(recipe.labeller.source, work.recipe_folder, list(recipe.task.classes))
    shares = work.desk.share(lambda shard: _pieces(source, shard, work))
    if shares is None:
        return None
    start = time.perf_counter()
    spool, repeats, quarantine = _gather(shares, len(source))
    groups, refused = _sort_out(spool, repeats, near_copies=recipe.labeller.near_copies)
    quarantine += refused
    _report(quarantine, len(source), work)
    counts = _write(spool, groups, quarantine, work)
    write_quarantine(work.folder, quarantine)
    seconds = max(share.seconds for share in shares) + time.perf_counter() - start
    copies = [group for group in groups if len(group) > 1]
    return Made(
        facts={
            "classes": list(recipe.task.classes),
            "counts": counts,
            "images_total": len(source),
            "images_used": sum(len(group) for group in groups),
            "near_copy_groups": len(copies),
            "near_copy_images": sum(len(group) for group in copies),
            "quarantine": dict(sorted(Counter(item.reason for item in quarantine).items())),
            "source": recipe.labeller.source.kind,
        },
        measurements={
            "seconds": seconds,
            "images_per_second": len(source) / seconds,
            "share_seconds": [share.seconds for share in shares],
        },
        versions={package: version(package) for package in ("numpy", "pillow", "pyarrow")},
    )


def _pieces(source: SourceReader, shard: Shard, work: Work) -> list[Piece]:
    own = range(len(source))[shard.index :: shard.count]
    refused: Counter[str] = Counter()
    return [
        # The name says which records: should PIECE_RECORDS change, nobody takes an old piece for a new one.
        Piece(f"{own[first]:08d}-{len(own[first : first + PIECE_RECORDS])}",
              partial(_prepare, source, own, first, refused, work))
        for first in range(0, len(own), PIECE_RECORDS)
    ]  # fmt: skip


def _prepare(
    source: SourceReader, own: range, first: int, refused: Counter[str], work: Work, folder: Path
) -> None:
    """Fills a piece with the records of a share from its `first` on; `refused` counts over all pieces."""
    places = own[first : first + PIECE_RECORDS]
    with (
        strict_pillow(work.recipe.labeller.max_pixels),
        ThreadPoolExecutor(1) as large,
        PieceWriter(folder) as piece,
    ):

        def step(record: Record) -> Prepared | Quarantined:
            made = prepare(record, work.recipe, large)
            return Quarantined(record.source_id, made.reason, made.detail) if isinstance(made, Problem) else made

        made = _in_order(step, source.records(places), work.environment.thread_count())
        for done, item in enumerate(made, start=first + 1):
            piece.add(item)
            if isinstance(item, Quarantined):
                refused[item.reason] += 1
            work.progress.step(done, len(own), "images", unseen={"prepared": done}, quarantined=refused)


def _gather(shares: Sequence[Share], total: int) -> tuple[Spool, dict[int, list[Record]], list[Quarantined]]:
    """All records in the source's order: usable ones once, further records of the same bytes by index, refused ones."""
    spool = Spool()
    repeats: dict[int, list[Record]] = {}
    quarantine: list[Quarantined] = []
    index_of: dict[str, int] = {}
    readers = [read_share(share.folders) for share in shares]
    for place in range(total):  # as `dealt`, without holding all rows
        item = next(readers[place % len(readers)])
        if isinstance(item, Quarantined):
            quarantine.append(item)
        elif item.sha256 in index_of:
            repeats.setdefault(index_of[item.sha256], []).append(item.record)
        else:
            index_of[item.sha256] = len(spool)
            spool.add(item)
    return spool, repeats, quarantine


def _in_order(step: Callable[[In], Out], items: Iterable[In], threads: int) -> Iterator[Out]:
    """Results in the order of `items`. Pillow works outside the interpreter lock; few items wait in memory."""
    with ThreadPoolExecutor(threads) as pool:
        waiting: deque[Future[Out]] = deque()
        for item in items:
            waiting.append(pool.submit(step, item))
            if len(waiting) > 2 * threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _sort_out(
    spool: Spool, repeats: dict[int, list[Record]], *, near_copies: bool
) -> tuple[list[list[int]], list[Quarantined]]:
    """Groups of copies that are used; and in quarantine, copies with contradicting labels and repeated files."""
    records = [[record, *repeats.get(index, [])] for index, record in enumerate(spool.records)]
    labels = [sorted({record.label for record in same}) for same in records]
    groups = [[index] for index in range(len(spool))]
    contradicts: dict[int, int] = {}
    if near_copies and len(spool):
        # One file under two labels has a label of its own, which no copy can agree with.
        codes = {label: code for code, label in enumerate(sorted({label for own in labels for label in own}))}
        labels_N = np.array([codes[own[0]] if len(own) == 1 else -1 - index for index, own in enumerate(labels)])
        copies = group_copies(*spool.looks(), labels_N)
        groups, contradicts = copies.groups, copies.contradicts
    refused = []
    for index, (first, *again) in enumerate(records):
        if len(labels[index]) > 1:
            detail = f"{len(again) + 1} files of the same bytes are labelled {', '.join(labels[index])}"
            refused += [Quarantined(record.source_id, "contradicting_labels", detail) for record in (first, *again)]
        elif index in contradicts:
            other = contradicts[index]
            detail = f"its copy {spool.records[other].source_id} is labelled {', '.join(labels[other])}"
            refused += [Quarantined(record.source_id, "contradicting_labels", detail) for record in (first, *again)]
        else:
            detail = f"same bytes as {first.source_id}"
            refused += [Quarantined(record.source_id, "duplicate", detail) for record in again]
    sound = [[index for index in group if len(labels[index]) == 1 and index not in contradicts] for group in groups]
    return [group for group in sound if group], refused


def _report(quarantine: list[Quarantined], total: int, work: Work) -> None:
    """One line on the log; raises DataError when nothing is left."""
    counts = Counter(item.reason for item in quarantine)
    text = ", ".join(f"{count} {reason}" for reason, count in sorted(counts.items()))
    if len(quarantine) == total:
        example = f"; first: {min(quarantine).source_id}: {min(quarantine).detail}" if quarantine else ""
        raise DataError(f"none of the source's {total} images can be used: {text or 'it is empty'}{example}")
    if quarantine:
        work.progress.warn(f"quarantined {len(quarantine)} of {total}: {text}")


def _write(
    spool: Spool, groups: list[list[int]], quarantine: list[Quarantined], work: Work
) -> dict[str, dict[str, int]]:
    """Writes the splits, in the order of their keys, so that no reader meets the classes one after the other."""
    recipe, classes = work.recipe, list(work.recipe.task.classes)
    labels = [record.label for record in spool.records]
    try:
        splits = assign_splits(groups, spool.shas, labels, classes, recipe.labeller.split)
    except DataError as error:
        counts = dict(sorted(Counter(item.reason for item in quarantine).items()))
        raise DataError(f"{error}; in quarantine: {counts or 'nothing'}") from error
    counts_by_split = {}
    for split in SPLITS:
        chosen = [index for index in range(len(spool)) if splits[index] == split]
        chosen.sort(key=lambda index: order_key(recipe.labeller.split.seed, spool.shas[index]))
        rows = [_row(spool, index, recipe) for index in chosen]
        sizes = [spool.png_sizes[index] for index in chosen]
        write_split(work.folder, split, rows, sizes, map(spool.png, chosen), classes)
        counts_by_split[split] = {name: sum(row.label == name for row in rows) for name in classes}
    return counts_by_split


def _row(spool: Spool, index: int, recipe: Recipe) -> Row:
    record = spool.records[index]
    return Row(
        label=record.label,
        answer=record.label,
        question=recipe.task.question,
        sha256=spool.shas[index],
        phash=f"{spool.hashes[index]:016x}",
        source=recipe.labeller.source.kind,
        source_id=record.source_id,
        url=record.url,
        author=record.author,
        licence=record.licence,
        teacher_reason=record.reason,
        teacher_confidence=record.confidence,
    )
