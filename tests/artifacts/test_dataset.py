from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Sequence
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from PIL import Image

from pocketvlm.artifacts import dataset
from pocketvlm.artifacts.dataset import (
    Example,
    Quarantined,
    Row,
    read_quarantine,
    read_split,
    write_quarantine,
    write_split,
)
from pocketvlm.errors import DataError

CLASSES = ["water", "fire"]


def png(index: int) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (8, 8), (index % 256, index // 256, 0)).save(out, "PNG")
    return out.getvalue()


def row(index: int, *, variants: Sequence[tuple[str, str]] = ()) -> Row:
    label = CLASSES[index % 2]
    sha256 = hashlib.sha256(str(index).encode()).hexdigest()
    return Row(label, label, "Which?", sha256, f"{index:016x}", "folder", f"é/{index}.jpg", licence="CC0",
               teacher_confidence=0.5 if index else None, variants=variants)  # fmt: skip


def pairs(index: int) -> list[tuple[str, str]]:
    """None, one or two variants of a training image."""
    return [(f"Is it so? {index}", "é: yes"), ("And now?", "no")][: index % 3]


def write(folder: Path, split: str, count: int, sizes: Sequence[int] | None = None) -> None:
    folder.mkdir(exist_ok=True)
    pngs = [png(index) for index in range(count)]
    sizes = sizes or [len(data) for data in pngs]
    rows = [row(index, variants=pairs(index) if split == "train" else ()) for index in range(count)]
    write_split(folder, split, rows, sizes, iter(pngs), CLASSES)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_split_reads_back_in_order(tmp_path: Path) -> None:
    write(tmp_path, "train", 150)
    assert names(tmp_path) == ["train-00000-of-00001.parquet"]
    one = row(149)
    examples = list(read_split(tmp_path, "train"))
    assert examples[149] == Example(149, png(149), "fire", "fire", "Which?", one.sha256, one.source_id, tuple(pairs(149)))
    assert [example.index for example in examples] == list(range(150))
    assert [list(example.variants) for example in examples] == [pairs(index) for index in range(150)]


@pytest.mark.parametrize("split", ["validation", "test"])
def test_only_training_images_have_variants(tmp_path: Path, split: str) -> None:
    write(tmp_path, split, 5)
    assert [example.variants for example in read_split(tmp_path, split)] == [()] * 5
    with pytest.raises(AssertionError, match="only training"):
        write_split(tmp_path, split, [row(0, variants=[("Why?", "so")])], [1], iter([png(0)]), CLASSES)


def test_texts_that_come_again_and_again_are_stored_once(tmp_path: Path) -> None:
    write(tmp_path, "train", 64)
    group = pq.ParquetFile(tmp_path / "train-00000-of-00001.parquet").metadata.row_group(0)
    columns = {group.column(i).path_in_schema: group.column(i) for i in range(group.num_columns)}
    for name in ("question", "variants.list.element.question", "variants.list.element.answer"):
        assert columns[name].has_dictionary_page, name
    assert not columns["image.bytes"].has_dictionary_page


def test_row_groups_are_small_enough_to_stream(tmp_path: Path) -> None:
    write(tmp_path, "train", 150)
    file = pq.ParquetFile(tmp_path / "train-00000-of-00001.parquet")
    assert [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)] == [64, 64, 22]


def test_large_split_is_cut_into_shards_that_read_as_one(tmp_path: Path) -> None:
    write(tmp_path, "train", 5, sizes=[30_000_000, 30_000_000, 30_000_000, 90_000_000, 1])
    assert names(tmp_path) == [f"train-{number:05d}-of-00004.parquet" for number in range(4)]
    assert [example.image_png for example in read_split(tmp_path, "train")] == [png(index) for index in range(5)]


def test_missing_shard_or_split_is_noticed(tmp_path: Path) -> None:
    write(tmp_path, "train", 3, sizes=[dataset.SHARD_BYTES] * 3)
    (tmp_path / "train-00001-of-00003.parquet").unlink()
    with pytest.raises(DataError, match="train split is incomplete: 2 of 3"):
        list(read_split(tmp_path, "train"))
    with pytest.raises(DataError, match="no test split"):
        list(read_split(tmp_path, "test"))


def test_equal_rows_give_equal_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write(tmp_path / name, "train", 100)
    first, second = ((tmp_path / name / "train-00000-of-00001.parquet").read_bytes() for name in ("a", "b"))
    assert first == second


def test_hugging_face_datasets_opens_it_with_images_and_classes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
        monkeypatch.setenv(name, "1")
    import datasets

    for split in dataset.SPLITS:
        write(tmp_path / "set", split, 10)
    found = datasets.load_dataset(
        "parquet",
        data_files={split: str(tmp_path / "set" / f"{split}-*.parquet") for split in dataset.SPLITS},
        cache_dir=str(tmp_path / "cache"),
    )
    assert {split: len(found[split]) for split in found} == dict.fromkeys(dataset.SPLITS, 10)
    assert isinstance(found["train"].features["image"], datasets.Image)
    assert found["train"].features["label_id"].names == CLASSES
    third = found["train"][3]
    assert third["image"].getpixel((0, 0)) == (3, 0, 0)
    assert (third["label"], found["train"].features["label_id"].int2str(third["label_id"])) == ("fire", "fire")
    assert third["teacher_confidence"] == 0.5
    assert isinstance(found["train"].features["variants"], datasets.List)
    assert found["train"].features == found["test"].features
    sixth = found["train"][5]["variants"]
    assert [(pair["question"], pair["answer"]) for pair in sixth] == pairs(5) and len(sixth) == 2
    assert found["test"][5]["variants"] == []
    assert third["teacher_model"] is None


def test_quarantine_is_written_sorted_one_object_a_line(tmp_path: Path) -> None:
    items = [Quarantined("b\nc", "truncated", "é"), Quarantined("a", "empty_file", "has no bytes")]
    write_quarantine(tmp_path, items)
    lines = (tmp_path / "quarantine.jsonl").read_text().splitlines()
    assert [json.loads(line)["source_id"] for line in lines] == ["a", "b\nc"]
    assert read_quarantine(tmp_path) == sorted(items)
