"""Fields of an `extract` task out of records and Parquet: columns of their own, or one column of JSON."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest
from hub_sets import parquet, pictures

from pocketvlm.errors import RunFileError
from pocketvlm.run_file import ExtractField, HubSource, RecordsSource
from pocketvlm.sources.open import open_source
from pocketvlm.sources.record import Context, SourceReader

FIELDS = {
    name: ExtractField.model_validate({"description": "", **values})
    for name, values in {
        "is_food": {"type": "integer", "values": [0, 1]}, "title": {"type": "string", "max_length": 20},
        "hot": {"type": "boolean"}, "price": {"type": "number"}, "size": {"type": "string", "values": ["small", "Large"]},
        "items": {"type": "list", "max_items": 2},
    }.items()
}  # fmt: skip
GOOD: dict[str, Any] = {"is_food": 1, "title": "Tea", "hot": True, "price": 2.5, "size": "Large", "items": ["tea"]}
LABEL = '{"is_food":1,"title":"Tea","hot":true,"price":2.5,"size":"Large","items":["tea"]}'


def records(folder: Path, name: str, rows: list[dict[str, Any]], **settings: Any) -> SourceReader:
    (folder / "a.jpg").write_bytes(b"image")
    rows = [{"image_id": str(number), "image_path": "a.jpg", **row} for number, row in enumerate(rows)]
    if name.endswith(".csv"):
        out = io.StringIO()
        writer = csv.DictWriter(out, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
        (folder / name).write_text(out.getvalue())
    else:
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = RecordsSource.model_validate({"kind": "records", "path": name, **settings})
    return open_source(source, Context(folder, [], fields=FIELDS))


def labels(reader: SourceReader) -> list[str]:
    """Labels, or the reason and detail of what cannot be used."""
    return [record.label or f"{record.problem.reason}: {record.problem.detail}" if record.problem or record.label else "?"
            for record in reader]  # fmt: skip


def test_each_field_has_its_column(tmp_path: Path) -> None:
    turned = dict(reversed(GOOD.items()))
    assert labels(records(tmp_path, "a.jsonl", [GOOD, turned, {**GOOD, "another": 1}])) == [LABEL] * 3


def test_one_column_holds_the_fields_as_json_text_or_as_an_object(tmp_path: Path) -> None:
    rows = [{"said": GOOD}, {"said": json.dumps(GOOD, indent=1)}, {"said": {**GOOD, "another": 1}}]
    assert labels(records(tmp_path, "a.jsonl", rows, label_column="said")) == [LABEL] * 3


def test_a_csv_has_texts_that_mean_values(tmp_path: Path) -> None:
    row = {"is_food": "1", "title": " Tea ", "hot": "TRUE", "price": "2.50", "size": "large", "items": '["tea"]'}
    assert labels(records(tmp_path, "a.csv", [row])) == [LABEL]
    assert labels(records(tmp_path, "b.csv", [{"said": LABEL}], label_column="said")) == [LABEL]


def test_columns_and_keys_may_have_other_names(tmp_path: Path) -> None:
    row = {"food?": 1, **{name: value for name, value in GOOD.items() if name != "is_food"}}
    assert labels(records(tmp_path, "a.jsonl", [row], field_columns={"is_food": "food?"})) == [LABEL]
    said = records(tmp_path, "b.jsonl", [{"said": row}], label_column="said", field_columns={"is_food": "food?"})
    assert labels(said) == [LABEL]


@pytest.mark.parametrize(
    ("changes", "means"),
    [
        ({"is_food": 1.0}, LABEL), ({"is_food": "1.0"}, LABEL), ({"price": "25e-1"}, LABEL), ({"size": "LARGE "}, LABEL),
        ({"price": 2}, LABEL.replace("2.5", "2")), ({"price": 2.0}, LABEL.replace("2.5", "2")),
        ({"items": []}, LABEL.replace('"tea"', "")),
        ({"title": ""}, LABEL.replace("Tea", "")),
        ({"title": "\ud800tea"}, LABEL.replace("Tea", "\\\\ud800tea")),
    ],
)  # fmt: skip
def test_what_loses_nothing_is_taken(tmp_path: Path, changes: dict[str, Any], means: str) -> None:
    assert labels(records(tmp_path, "a.jsonl", [{**GOOD, **changes}])) == [means]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"is_food": True}, "bad_value: line 1: is_food is true, which is no integer"),
        ({"is_food": 1.5}, "bad_value: line 1: is_food is 1.5"), ({"is_food": "yes"}, "bad_value: line 1: is_food"),
        ({"is_food": 2}, "bad_value: line 1: is_food is or holds 2"), ({"hot": 1}, "bad_value: line 1: hot is 1"),
        ({"title": 5}, "bad_value: line 1: title is 5"), ({"title": "x" * 21}, "bad_value: line 1: title has 21 characters"),
        ({"price": float("inf")}, "bad_value: line 1: price"), ({"size": "huge"}, "bad_value: line 1: size"),
        ({"items": "tea, milk"}, "bad_value: line 1: items is"),
        ({"items": ["a", "b", "c"]}, "bad_value: line 1: items has 3 texts"),
        ({"items": [1]}, "bad_value: line 1: items holds something else than texts"),
        ({"items": None}, "missing_field: line 1: items is missing"),
    ],
)  # fmt: skip
def test_what_would_lose_something_is_quarantined_with_the_reason(tmp_path: Path, changes: dict[str, Any], says: str) -> None:
    (found,) = labels(records(tmp_path, "a.jsonl", [{**GOOD, **changes}]))
    assert found.startswith(says)


@pytest.mark.parametrize(
    ("cell", "says"),
    [("{", "bad_value: line 1: said is no JSON"), ("[1]", "bad_value: line 1: said holds a list"), ("", "missing_field"),
     ("[" * 100_000, "bad_value"), ('{"is_food": NaN}', "bad_value"), ("{}", "missing_field: line 1: is_food is missing")],
)  # fmt: skip
def test_a_cell_that_is_no_object_costs_one_image(tmp_path: Path, cell: str, says: str) -> None:
    found = labels(records(tmp_path, "a.jsonl", [{"said": cell}, {"said": GOOD}], label_column="said"))
    assert found[0].startswith(says) and found[1] == LABEL


def test_a_column_that_is_nowhere_is_the_run_files_fault(tmp_path: Path) -> None:
    with pytest.raises(RunFileError, match=r"field_columns: a.jsonl has no column is_food.*did you mean `is_foods`"):
        records(tmp_path, "a.jsonl", [{"is_foods": 1}])
    with pytest.raises(RunFileError, match=r"label_column: a.jsonl has no column sad.*did you mean `said`"):
        records(tmp_path, "a.jsonl", [{"said": GOOD}], label_column="sad")
    with pytest.raises(RunFileError, match=r"field_columns.is_fod: is not in run.task.fields; did you mean `is_food`"):
        records(tmp_path, "a.jsonl", [GOOD], field_columns={"is_fod": "x"})


def test_with_a_teacher_no_column_of_fields_is_needed(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"image")
    (tmp_path / "a.jsonl").write_text('{"image_id": "1", "image_path": "a.jpg"}\n')
    source = RecordsSource(kind="records", path="a.jsonl")
    (record,) = open_source(source, Context(tmp_path, [], labelled=False, fields=FIELDS))
    assert (record.label, record.data) == ("", b"image")


def hub(folder: Path, rows: list[dict[str, Any]], **settings: Any) -> SourceReader:
    (folder / "a.parquet").write_bytes(parquet(rows))
    source = HubSource.model_validate({"kind": "hub", "path": "a.parquet", **settings})
    return open_source(source, Context(folder, [], fields=FIELDS))


@pytest.mark.parametrize("written", ["a structure", "JSON text"])
def test_a_dataset_of_the_hub_has_the_fields_in_one_column(tmp_path: Path, written: str) -> None:
    cell = GOOD if written == "a structure" else json.dumps(GOOD)
    assert labels(hub(tmp_path, pictures(3, output_label_json=lambda i: cell), label_column="output_label_json")) == [LABEL] * 3


def test_or_a_column_for_each(tmp_path: Path) -> None:
    rows = pictures(2, **{name: lambda i, value=value: value for name, value in GOOD.items()})  # type: ignore[misc]
    assert labels(hub(tmp_path, rows)) == [LABEL] * 2


def test_columns_of_a_dataset_that_are_not_there_are_named(tmp_path: Path) -> None:
    rows = pictures(2, output=lambda i: {"is_foods": 1}, number=lambda i: i)
    with pytest.raises(RunFileError, match=r"label_column: the dataset has no column is_food, but image, output, number"):
        hub(tmp_path, rows)
    with pytest.raises(RunFileError, match=r"field_columns: output has no key is_food, but is_foods; did you mean `is_foods`"):
        hub(tmp_path, rows, label_column="output")
    with pytest.raises(RunFileError, match=r"label_column: number holds int64, not JSON or a structure"):
        hub(tmp_path, rows, label_column="number")
    with pytest.raises(RunFileError, match=r"label_column: the dataset has no column outputs.*did you mean `output`"):
        hub(tmp_path, rows, label_column="outputs")
