"""Which images a person is shown: the least certain labels first, and some of every class."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from pocketvlm.artifacts.artifact import find
from pocketvlm.artifacts.dataset import SPLITS, Row, read_images, read_rows
from pocketvlm.artifacts.open import open_store
from pocketvlm.artifacts.run_record import read_record, run_id
from pocketvlm.environment import Environment
from pocketvlm.errors import UserError
from pocketvlm.interrupt import temporary_folder
from pocketvlm.run_file import ExtractField, Labeller, RunFile

PICTURE_PX = 768
"""Longest side of a picture: what a screen shows, not what a canvas of 4096 px holds."""
SMALL_BYTES = 24_000
"""PNGs up to this size are shown as they are; larger ones become a JPEG, a fifth of the size for a photograph."""


@dataclass(frozen=True)
class Item:
    """One image to look at."""

    row: Row
    split: str
    picture: str
    """A data: URI of the image as the student sees it."""


@dataclass(frozen=True)
class Sample:
    """What a person looks at, in this order."""

    name: str
    run: str
    dataset: str
    """Id of the dataset."""
    classes: Sequence[str]
    """None, where a label has `fields`."""
    votes: int
    """Answers that each label was made of; 0 without a teacher."""
    images_total: int
    """Of the dataset."""
    items: Sequence[Item]
    fields: Mapping[str, ExtractField] = field(default_factory=dict)


def take_sample(run_file: RunFile, environment: Environment, images: int) -> Sample:
    """At most `images` images of the run's dataset, from all splits, the least certain ones first.

    Raises UserError when the labeller of this run has not finished or `images` is below 1; Corrupt, DataError.
    """
    if images < 1:
        raise UserError(f"--images {images}: is below 1; a sample needs images")
    run = run_id(run_file.run)
    store = open_store(environment, read_only=True)
    record = read_record(store, run, "labeller")
    dataset = find(store, record.kind, record.id) if record else None
    if dataset is None:
        raise UserError(f"{store.url}: run {run} has no dataset, because its labeller has not finished; "
                        "run `pocketvlm stage labeller RUN` first")  # fmt: skip
    classes = list(run_file.run.task.classes)
    with temporary_folder(environment.scratch, "review-") as folder:
        dataset.fetch(folder, [file.name for file in dataset.files if file.name.endswith(".parquet")])
        chosen = choose(((split, row) for split in SPLITS for row in read_rows(folder, split)), classes, images)
        pictures = dict(_pictures(folder, chosen))
    return Sample(
        name=run_file.run.name, run=run, dataset=dataset.id, classes=classes, votes=_votes(run_file.run.labeller),
        images_total=int(dataset.facts.get("images_used", len(chosen))),
        items=[Item(row, split, pictures[row.sha256]) for split, row in chosen], fields=run_file.run.task.fields,
    )  # fmt: skip


def choose(rows: Iterable[tuple[str, Row]], classes: Sequence[str], images: int) -> list[tuple[str, Row]]:
    """The `images` least certain rows, each with its split, but of every class, where there are some, at least its share of one
    half.

    Fewer than `2 * images` rows of a class are held at a time, however many there are.
    """
    by_class: dict[str, list[tuple[str, Row]]] = {name: [] for name in classes or ("",)}
    for split, row in rows:
        held = by_class.setdefault(row.label if classes else "", [])
        held.append((split, row))
        if len(held) >= 2 * images:
            held.sort(key=_uncertain_first)
            del held[images:]
    for held in by_class.values():
        held.sort(key=_uncertain_first)
    least = max(1, images // (2 * len(by_class)))
    chosen = sorted((item for held in by_class.values() for item in held[:least]), key=_uncertain_first)[:images]
    rest = sorted((item for held in by_class.values() for item in held[least:]), key=_uncertain_first)
    return sorted(chosen + rest[: images - len(chosen)], key=_uncertain_first)


def _uncertain_first(item: tuple[str, Row]) -> tuple[float, float, str]:
    """Confidence, then votes, then the hash of the file, an order that nobody chose. What is not known comes last."""
    row = item[1]
    confidence = math.inf if row.teacher_confidence is None else row.teacher_confidence
    return confidence, math.inf if row.teacher_votes is None else row.teacher_votes, row.sha256


def _votes(labeller: Labeller) -> int:
    return sum(teacher.votes for teacher in labeller.teachers)


def _pictures(folder: Path, chosen: Sequence[tuple[str, Row]]) -> Iterator[tuple[str, str]]:
    for split in SPLITS:
        wanted = {row.sha256 for own, row in chosen if own == split}
        if wanted:
            yield from ((sha256, _data_uri(png)) for sha256, png in read_images(folder, split, wanted))


def _data_uri(png: bytes) -> str:
    kind, data = "png", png
    if len(png) > SMALL_BYTES:
        with Image.open(io.BytesIO(png)) as image:
            picture = image.convert("RGB")
        picture.thumbnail((PICTURE_PX, PICTURE_PX), Image.Resampling.LANCZOS)
        file = io.BytesIO()
        picture.save(file, "JPEG", quality=88, optimize=True)
        kind, data = "jpeg", file.getvalue()
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
