"""The dataset artifact: Parquet shards with the images inside, as Hugging Face `datasets` and the Hub open them.

`<split>-00000-of-00001.parquet` for train, validation and test, and `quarantine.jsonl` with what could not be used.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from pocketvlm.errors import DataError

SPLITS = ("train", "validation", "test")
SHARD_BYTES = 64_000_000
"""Most image bytes of a shard, unless a single image is larger."""
ROW_GROUP_ROWS = 64
"""What a reader holds in memory at once: at 256x256, some 5 MB."""
QUARANTINE = "quarantine.jsonl"
PAIR = ("question", "answer")
"""Fields of one of the variants."""


@dataclass(frozen=True)
class Row:
    """One usable image with all that is known of it, but for its pixels. The fields are columns of the dataset."""

    label: str
    """A class name; of an `extract` task the fields, as compact JSON with its keys in the run file's order."""
    answer: str
    """What the student has to say: the label, or a reason and the label."""
    question: str
    """The question that ships."""
    sha256: str
    """Of the original file's bytes."""
    phash: str
    """64 bits in hex."""
    source: str
    source_id: str
    url: str | None = None
    author: str | None = None
    licence: str | None = None
    labelled_by: str = "source"
    """`source`, `teacher` or `person`."""
    teacher_model: str | None = None
    teacher_reason: str | None = None
    teacher_runner_up: str | None = None
    """The class that it would have named next."""
    teacher_confidence: float | None = None
    teacher_votes: int | None = None
    """Answers of the teacher that agreed with `label`."""
    teacher_request_id: str | None = None
    teacher_cost: float | None = None
    """US dollars."""
    variants: Sequence[tuple[str, str]] = ()
    """Of a training image: more pairs of question and answer that the student learns from it."""


@dataclass(frozen=True)
class Example:
    """What the other stages read of a row."""

    index: int
    """Position in the split, from 0."""
    image_png: bytes
    """RGB, on the device's canvas."""
    label: str
    answer: str
    question: str
    sha256: str
    source_id: str
    variants: tuple[tuple[str, str], ...] = ()
    """Pairs of question and answer; empty outside train."""


@dataclass(frozen=True, order=True)
class Quarantined:
    """A record that is not in the dataset: `reason` is a code that is counted, `detail` a text for a person."""

    source_id: str
    reason: str
    detail: str


def schema(classes: Sequence[str]) -> pa.Schema:
    """Arrow schema; its metadata tell `datasets` that `image` is an Image and `label_id` a ClassLabel of `classes`.

    Without classes there is no `label_id`.
    """
    kinds = {"teacher_confidence": "float64", "teacher_votes": "int64", "teacher_cost": "float64"}
    columns = [(field.name, kinds.get(field.name, "string")) for field in fields(Row) if field.name != "variants"]
    if classes:
        columns.insert(1, ("label_id", "int64"))
    features: dict[str, dict[str, object]] = {"image": {"_type": "Image"}}
    features |= {name: {"dtype": kind, "_type": "Value"} for name, kind in columns}
    if classes:
        features["label_id"] = {"names": list(classes), "_type": "ClassLabel"}
    features["variants"] = {"feature": {name: {"dtype": "string", "_type": "Value"} for name in PAIR}, "_type": "List"}
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    pair = pa.struct([(name, pa.string()) for name in PAIR])
    return pa.schema(
        [("image", image), *((name, pa.type_for_alias(kind)) for name, kind in columns), ("variants", pa.list_(pair))],
        metadata={"huggingface": json.dumps({"info": {"features": features}})},
    )


def write_split(
    folder: Path,
    split: str,
    rows: Sequence[Row],
    sizes: Sequence[int],
    images: Iterator[bytes],
    classes: Sequence[str],
) -> None:
    """Writes the shards of one split; equal arguments give equal bytes.

    `images` are the rows' PNGs and `sizes` their bytes, both in the order of `rows`; one row group is held at a time.
    """
    assert split == "train" or not any(row.variants for row in rows), "only training asks other questions than the shipped one"
    shards = _shards(sizes)
    for number, (start, stop) in enumerate(shards):
        path = folder / _shard_name(split, number, len(shards))
        # Statistics of the image bytes would repeat them; dictionaries pay for all other columns and never for these.
        names = [name for name in schema(classes).names if name not in ("image", "variants")]
        names += [f"variants.list.element.{name}" for name in PAIR]
        with pq.ParquetWriter(
            path,
            schema(classes),
            compression="zstd",
            use_dictionary=names,
            write_statistics=names,
            write_page_index=True,
        ) as writer:
            for first in range(start, stop, ROW_GROUP_ROWS):
                last = min(first + ROW_GROUP_ROWS, stop)
                pngs = list(itertools.islice(images, last - first))
                writer.write_table(_table(rows[first:last], pngs, classes), row_group_size=ROW_GROUP_ROWS)


def _table(rows: Sequence[Row], pngs: list[bytes], classes: Sequence[str]) -> pa.Table:
    ids = {name: index for index, name in enumerate(classes)}
    columns: dict[str, list[object]] = {field.name: [getattr(row, field.name) for row in rows] for field in fields(Row)}
    columns["variants"] = [[dict(zip(PAIR, pair, strict=True)) for pair in row.variants] for row in rows]
    if classes:
        columns["label_id"] = [ids[row.label] for row in rows]
    columns["image"] = [
        {"bytes": image, "path": f"{row.sha256[:16]}.png"} for row, image in zip(rows, pngs, strict=True)
    ]
    return pa.Table.from_pydict(columns, schema=schema(classes))


def _shards(sizes: Sequence[int]) -> list[tuple[int, int]]:
    """Ranges of rows, each of at most SHARD_BYTES or of one row; at least one range, which may be empty."""
    starts, filled = [0], 0
    for index, size in enumerate(sizes):
        if filled and filled + size > SHARD_BYTES:
            starts.append(index)
            filled = 0
        filled += size
    return list(zip(starts, [*starts[1:], len(sizes)], strict=True))


def read_split(folder: Path, split: str) -> Iterator[Example]:
    """The examples of a split in file order. Raises DataError when its shards are not all there."""
    columns = ["image", "label", "answer", "question", "sha256", "source_id", "variants"]
    index = 0
    for path in shard_paths(folder, split):
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=ROW_GROUP_ROWS, columns=columns):
                for row in batch.to_pylist():
                    image = row.pop("image")
                    pairs = tuple((pair["question"], pair["answer"]) for pair in row.pop("variants"))
                    yield Example(index=index, image_png=image["bytes"], variants=pairs, **row)
                    index += 1


def read_rows(folder: Path, split: str) -> Iterator[Row]:
    """All that is known of the images of a split, in file order, but for their pixels. Raises as `read_split` does."""
    columns = [field.name for field in fields(Row)]
    for path in shard_paths(folder, split):
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=ROW_GROUP_ROWS, columns=columns):
                for row in batch.to_pylist():
                    pairs = tuple((pair["question"], pair["answer"]) for pair in row.pop("variants"))
                    yield Row(variants=pairs, **row)


def read_images(folder: Path, split: str, wanted: Collection[str]) -> Iterator[tuple[str, bytes]]:
    """(sha256, PNG) of the images of a split that are wanted by their sha256; rows without any of them are not read."""
    for path in shard_paths(folder, split):
        with pq.ParquetFile(path) as file:
            for group in range(file.num_row_groups):
                shas = file.read_row_group(group, columns=["sha256"])["sha256"].to_pylist()
                if not any(sha256 in wanted for sha256 in shas):
                    continue
                images = file.read_row_group(group, columns=["image"])["image"].to_pylist()
                yield from ((sha256, image["bytes"]) for sha256, image in zip(shas, images, strict=True) if sha256 in wanted)


def _shard_name(split: str, number: int, total: int) -> str:
    return f"{split}-{number:05d}-of-{total:05d}.parquet"


def shard_paths(folder: Path, split: str) -> list[Path]:
    """The Parquet files of a split, in order. Raises DataError when they are not all there."""
    paths = sorted(folder.glob(f"{split}-*-of-*.parquet"))
    if not paths:
        raise DataError(f"the dataset has no {split} split; run the labeller again")
    found = re.search(r"-of-(\d+)\.parquet$", paths[0].name)
    total = int(found[1]) if found else 0
    expected = [_shard_name(split, number, total) for number in range(total)]
    if [path.name for path in paths] != expected:
        raise DataError(f"the dataset's {split} split is incomplete: {len(paths)} of {len(expected)} shards; "
                        "fetch the artifact again")
    return paths


def write_quarantine(folder: Path, items: Iterable[Quarantined]) -> None:
    """Writes what could not be used, sorted, one JSON object a line."""
    lines = [json.dumps(vars(item), sort_keys=True) for item in sorted(items)]
    (folder / QUARANTINE).write_text("".join(f"{line}\n" for line in lines), newline="\n")


def read_quarantine(folder: Path) -> list[Quarantined]:
    """What `write_quarantine` wrote."""
    with (folder / QUARANTINE).open() as lines:
        return [Quarantined(**json.loads(line)) for line in lines]
