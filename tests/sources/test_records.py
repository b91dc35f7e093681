from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest

from pocketvlm.errors import DataError, RunFileError
from pocketvlm.run_file import RecordsSource
from pocketvlm.sources.open import open_source
from pocketvlm.sources.record import Context, Record, SourceReader

CLASSES = ["fire", "Still Water"]
ROWS: list[dict[str, Any]] = [
    {"image_id": "b", "image_path": "b.jpg", "label": "fire", "reason": "flames", "confidence": 0.9, "author": "Ann"},
    {"image_id": "a", "image_path": "deep/a.jpg", "label": " still  WATER "},
]


def as_json(rows: list[dict[str, Any]]) -> str:
    return json.dumps(rows)


def as_jsonl(rows: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def as_csv(rows: list[dict[str, Any]]) -> str:
    out = io.StringIO()
    writer = csv.DictWriter(out, sorted({key for row in rows for key in row}))
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def opened(folder: Path, name: str, text: str | bytes, **settings: object) -> SourceReader:
    (folder / "deep").mkdir(exist_ok=True)
    for image in ("b.jpg", "deep/a.jpg"):
        (folder / image).write_bytes(image.encode())
    (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    return open_source(RecordsSource.model_validate({"kind": "records", "path": name, **settings}), Context(folder, CLASSES))


def problems(reader: SourceReader) -> dict[str, tuple[str, str]]:
    return {record.source_id: (record.problem.reason, record.problem.detail) for record in reader if record.problem}


@pytest.mark.parametrize(("name", "write"), [("r.json", as_json), ("r.jsonl", as_jsonl), ("r.csv", as_csv)])
def test_every_format_gives_the_same_records_sorted_by_id(tmp_path: Path, name: str, write: Any) -> None:
    reader = opened(tmp_path, name, write(ROWS), licence="CC BY 4.0")
    assert list(reader) == [
        Record("a", b"deep/a.jpg", label="Still Water", licence="CC BY 4.0"),
        Record("b", b"b.jpg", label="fire", author="Ann", licence="CC BY 4.0", reason="flames", confidence=0.9),
    ]
    assert len(reader) == 2


def test_byte_order_mark_of_excel_is_no_part_of_a_column(tmp_path: Path) -> None:
    assert not problems(opened(tmp_path, "r.csv", b"\xef\xbb\xbf" + as_csv(ROWS).encode()))


def test_label_column_is_a_setting(tmp_path: Path) -> None:
    rows = [{"image_id": 1, "image_path": "b.jpg", "element": "fire"}]
    assert [r.label for r in opened(tmp_path, "r.json", as_json(rows), label_column="element")] == ["fire"]
    with pytest.raises(RunFileError, match=r"label_column: r.json has no column elment.*did you mean `element`"):
        opened(tmp_path, "r.json", as_json(rows), label_column="elment")


def test_images_may_lie_in_a_folder_of_their_own(tmp_path: Path) -> None:
    rows = [{"image_id": "a", "image_path": "a.jpg", "label": "fire"}]
    assert [r.data for r in opened(tmp_path, "r.json", as_json(rows), images="deep")] == [b"deep/a.jpg"]
    with pytest.raises(RunFileError, match=r"run.labeller.source.images: nowhere is not a folder"):
        opened(tmp_path, "r.json", as_json(rows), images="nowhere")


@pytest.mark.parametrize("path", ["../secret.jpg", "deep/../../secret.jpg", "{outside}", "link.jpg"])
def test_no_path_leads_out_of_the_folder(tmp_path: Path, path: str) -> None:
    secret = tmp_path / "secret.jpg"
    secret.write_bytes(b"secret")
    folder = tmp_path / "set"
    folder.mkdir()
    (folder / "link.jpg").symlink_to(secret)
    rows = [{"image_id": "x", "image_path": path.format(outside=secret), "label": "fire"}]
    reader = opened(folder, "r.json", as_json(rows))
    assert problems(reader)["x"][0] == "outside_folder"
    reader.fingerprint()


def test_what_a_record_lacks_is_said_with_its_line(tmp_path: Path) -> None:
    rows = [
        {"image_id": "gone", "image_path": "gone.jpg", "label": "fire"},
        {"image_id": "typo", "image_path": "b.jpg", "label": "fir"},
        {"image_id": "blank", "image_path": "b.jpg", "label": "  "},
        {"image_path": "b.jpg", "label": "fire"},
        {"image_id": "sure", "image_path": "b.jpg", "label": "fire", "confidence": 97},
        {"image_id": "folder", "image_path": "deep", "label": "fire"},
    ]
    assert problems(opened(tmp_path, "r.jsonl", as_jsonl(rows))) == {
        "gone": ("missing_file", "line 1: gone.jpg: there is no such file"),
        "typo": ("unknown_label", "line 2: fir is not in run.task.classes; did you mean `fire`?"),
        "blank": ("missing_field", "line 3: label is missing or empty"),
        "line 4": ("missing_field", "line 4: image_id is missing or empty"),
        "sure": ("bad_confidence", "line 5: confidence 97 is not a number from 0 to 1"),
        "folder": ("not_a_file", "line 6: deep: is a folder, device or pipe"),
    }


def test_line_that_is_cut_off_costs_one_record(tmp_path: Path) -> None:
    reader = opened(tmp_path, "r.jsonl", as_jsonl(ROWS) + '{"image_id": "c", "ima')
    assert problems(reader) == {"line 3": ("bad_line", "line 3: cannot be read")}
    assert len(reader) == 3


def test_csv_row_with_too_many_cells_is_not_trusted(tmp_path: Path) -> None:
    reader = opened(tmp_path, "r.csv", "image_id,image_path,label\nb,b.jpg,fire,more\nb,b.jpg,fire\n")
    assert problems(reader) == {"line 2": ("bad_line", "line 2: cannot be read")}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("r.json", "{"),
        ("r.json", '{"image_id": "a"}'),
        ("r.json", "[" * 100_000),
        ("r.json", "[]"),
        ("r.jsonl", "no json\nat all\n"),
        ("r.csv", ""),
        ("r.csv", 'image_id,image_path,label\nb,"b.jpg,fire\n'),
        ("r.csv", b"image_id,image_path,label\nb,\xff.jpg,fire\n"),
        ("r.csv", "image_id,path,label\nb,b.jpg,fire\n"),
    ],
)
def test_file_that_is_not_what_its_name_says_is_wrong_data(tmp_path: Path, name: str, text: str | bytes) -> None:
    with pytest.raises(DataError, match=rf"^{name}: "):
        opened(tmp_path, name, text)


def test_wrong_path_or_ending_is_the_run_files_fault(tmp_path: Path) -> None:
    with pytest.raises(RunFileError, match=r"run.labeller.source.path: r.xlsx must end in"):
        opened(tmp_path, "r.xlsx", "x")
    with pytest.raises(RunFileError, match=r"run.labeller.source.path: gone.csv is not a file"):
        open_source(RecordsSource(kind="records", path="gone.csv"), Context(tmp_path, CLASSES))


def test_half_a_surrogate_pair_does_not_reach_the_dataset(tmp_path: Path) -> None:
    text = '[{"image_id": "a\\ud800", "image_path": "b.jpg", "label": "fire"}]'
    assert [record.source_id.encode() for record in opened(tmp_path, "r.json", text)] == [b"a\\ud800"]


def test_fingerprint_follows_records_and_images(tmp_path: Path) -> None:
    before = opened(tmp_path, "r.json", as_json(ROWS)).fingerprint()
    assert opened(tmp_path, "r.json", as_json(ROWS)).fingerprint() == before
    reader = opened(tmp_path, "r.json", as_json(ROWS))
    (tmp_path / "b.jpg").write_bytes(b"other")
    assert reader.fingerprint() != before
    assert opened(tmp_path, "r.json", as_json(ROWS[:1])).fingerprint() != before
