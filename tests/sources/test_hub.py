"""`hub` on local Parquet, and what it says before a server is asked."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hub_sets import COMMIT, local, opened, parquet, pictures
from mars import write_mars

from pocketvlm.errors import DataError, RunFileError

# --- local Parquet ---


def test_local_parquet_is_right_to_the_row(tmp_path: Path) -> None:
    expected = write_mars(tmp_path / "mars", 10, 32, row_group_rows=7)
    source = opened(tmp_path, path="mars", licence="CC BY 4.0")
    assert len(source) == 150
    records = [(r.source_id, r.label, hashlib.sha256(r.data or b"").hexdigest()) for r in source]
    assert records == [(e.source_id, e.label, e.sha256) for e in expected]
    assert {record.licence for record in source} == {"CC BY 4.0"}
    assert source.plan_lines() == ["150 images of 6 Parquet files in mars"]  # type: ignore[attr-defined]


@pytest.mark.parametrize("places", [range(40, 95), range(3, 150, 7), range(149, -1, -1), range(104, 106)])
def test_any_places_give_what_reading_all_gives(places: range, tmp_path: Path) -> None:
    write_mars(tmp_path / "mars", 10, 32, row_group_rows=7)
    source = opened(tmp_path, path="mars")
    everything = list(source)
    assert list(source.records(places)) == [everything[place] for place in places]


def test_a_split_a_limit_and_a_single_file_are_read_alone(tmp_path: Path) -> None:
    write_mars(tmp_path / "mars", 10, 32)
    assert {r.source_id[:5] for r in opened(tmp_path, path="mars", split="test")} == {"test/"}
    assert len(opened(tmp_path, path="mars", split="test")) == 30
    assert [r.source_id for r in opened(tmp_path, path="mars", limit=107)][-2:] == ["validation/00000000", "validation/00000001"]
    assert len(opened(tmp_path, path="mars/data/test-00001-of-00002.parquet")) == 15
    with pytest.raises(RunFileError, match=r"source\.split: there is no split tests, but .*test; did you mean `test`"):
        opened(tmp_path, path="mars", split="tests")


def test_the_fingerprint_follows_every_byte_and_setting_and_not_the_place(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write_mars(tmp_path / name, 2, 32)
    first = opened(tmp_path, path="one").fingerprint()
    assert opened(tmp_path, path="two").fingerprint() == first
    assert opened(tmp_path, path="two", limit=3).fingerprint() != first
    file = tmp_path / "two/data/train-00000-of-00002.parquet"
    file.write_bytes(file.read_bytes().replace(b"ael_0.jpg", b"ael_9.jpg"))
    assert opened(tmp_path, path="two").fingerprint() != first


def test_a_local_path_that_is_wrong_says_what_to_name(tmp_path: Path) -> None:
    with pytest.raises(RunFileError, match=r"run\.labeller\.source\.path: nowhere is not there; name a Parquet file"):
        opened(tmp_path, path="nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(RunFileError, match=r"no \.parquet file in empty"):
        opened(tmp_path, path="empty")
    (tmp_path / "empty" / "a.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(DataError, match=r"a\.parquet: cannot be read as Parquet .*; fetch or write it again"):
        opened(tmp_path, path="empty")


def test_links_do_not_lead_out_of_the_folder(tmp_path: Path) -> None:
    write_mars(tmp_path / "mars", 2, 32)
    (tmp_path / "links").mkdir()
    (tmp_path / "links/a.parquet").symlink_to(tmp_path / "mars/data/test-00000-of-00002.parquet")
    with pytest.raises(DataError, match=r"links/a\.parquet: is a link that leads out of the folder"):
        opened(tmp_path, path="links")


def test_a_damaged_page_is_the_datas_fault_and_names_the_file(tmp_path: Path) -> None:
    data = bytearray(parquet(pictures(200, label=lambda i: "roof")))
    data[100:400] = bytes(300)
    source = local(tmp_path, bytes(data), ["roof"])
    with pytest.raises(DataError, match=r"a\.parquet: cannot be read as Parquet"):
        list(source)


# --- columns and classes ---


def test_columns_are_found_where_nothing_describes_them(tmp_path: Path) -> None:
    rows = [{"id": i, "photo": b"image", "note": "x", "category": ["Roof ", "solar panel"][i % 2]} for i in range(2)]
    assert [r.label for r in local(tmp_path, parquet(rows), ["roof", "Solar Panel"])] == ["roof", "Solar Panel"]


def test_settings_win_over_what_is_found(tmp_path: Path) -> None:
    features = {"image": {"_type": "Image"}, "thumb": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": ["x", "y"]}}
    rows = pictures(2, thumb=lambda i: {"bytes": b"thumb", "path": None}, label=lambda i: i, kind=lambda i: f"k{i}")
    with pytest.raises(RunFileError, match=r"image_column: the dataset has several columns of images, image, thumb; name one"):
        local(tmp_path, parquet(rows, features), ["a", "b"], class_names={"x": "a", "1": "b"})
    source = local(tmp_path, parquet(rows, features), ["a", "b"], image_column="thumb", class_names={"x": "a", "1": "B"})
    assert [(r.data, r.label) for r in source] == [(b"thumb", "a"), (b"thumb", "b")]
    source = local(tmp_path, parquet(rows, features), ["a", "b"], image_column="image", label_column="kind",
                   class_names={"k0": "a", "k1": "b"})  # fmt: skip
    assert [r.label for r in source] == ["a", "b"]


def test_two_columns_of_class_labels_are_ambiguous_unless_one_is_called_label(tmp_path: Path) -> None:
    kind = {"_type": "ClassLabel", "names": ["a", "b"]}
    rows = pictures(2, fine=lambda i: i, coarse=lambda i: 1 - i)
    with pytest.raises(RunFileError, match=r"label_column: .* several columns of class labels, fine, coarse; name one"):
        local(tmp_path, parquet(rows, {"fine": kind, "coarse": kind}), ["a", "b"])
    rows = pictures(2, label=lambda i: i, coarse=lambda i: 1 - i)
    assert [r.label for r in local(tmp_path, parquet(rows, {"label": kind, "coarse": kind}), ["a", "b"])] == ["a", "b"]


def test_columns_that_are_not_there_are_refused_with_the_nearest(tmp_path: Path) -> None:
    data = parquet(pictures(1, label=lambda i: "a"))
    with pytest.raises(RunFileError, match=r"image_column: .* no column imge, but image, label; did you mean `image`"):
        local(tmp_path, data, ["a"], image_column="imge")
    with pytest.raises(RunFileError, match=r"label_column: the dataset has no column lable, but .*did you mean `label`"):
        local(tmp_path, data, ["a"], label_column="lable")
    with pytest.raises(RunFileError, match=r"label_column: .* no column of labels, but image; name it, or let a teacher"):
        local(tmp_path, parquet(pictures(1)), ["a"])
    with pytest.raises(RunFileError, match=r"label_column: tags holds a list, not one text or number"):
        local(tmp_path, parquet(pictures(1, tags=lambda i: ["a"])), ["a"], label_column="tags")


def test_a_teachers_run_needs_no_labels(tmp_path: Path) -> None:
    source = local(tmp_path, parquet(pictures(2)), ["a"], labelled=False)
    assert [(r.data, r.label, r.problem) for r in source] == [(b"image 0", "", None), (b"image 1", "", None)]


def test_a_column_of_addresses_is_refused_and_a_single_one_costs_its_record(tmp_path: Path) -> None:
    rows = [{"image": "https://somewhere/a.jpg", "label": "a"}]
    with pytest.raises(RunFileError, match=r"no column of images, but image \(text\), label \(text\); .*follows no URLs"):
        local(tmp_path, parquet(rows, {"image": {"_type": "Image"}}), ["a"])
    with pytest.raises(RunFileError, match=r"image_column: image holds text, not images; .*follows no URLs"):
        local(tmp_path, parquet(rows), ["a"], image_column="image")
    cells = [{"bytes": None, "path": "http://169.254.169.254/key"}, {"bytes": None, "path": "../secret.png"},
             {"bytes": None, "path": "in.png"}, {"bytes": None, "path": None}, None]  # fmt: skip
    (tmp_path / "set").mkdir()
    (tmp_path / "secret.png").write_bytes(b"secret")
    (tmp_path / "set/in.png").write_bytes(b"inside")
    kinds = pa.schema([("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])), ("label", pa.string())])
    table = pa.Table.from_pylist([{"image": cell, "label": "a"} for cell in cells], schema=kinds)
    pq.write_table(table, tmp_path / "set/a.parquet")
    records = list(opened(tmp_path, ["a"], path="set"))
    assert [r.problem.reason if r.problem else r.data for r in records] == [
        "outside_dataset", "outside_folder", b"inside", "missing_file", "missing_file"]  # fmt: skip


def test_unknown_classes_of_the_features_are_all_listed_before_anything_is_read(tmp_path: Path) -> None:
    features = {"label": {"_type": "ClassLabel", "names": ["roof", "Pannel", "tree"]}}
    data = parquet(pictures(3, label=lambda i: i), features)
    with pytest.raises(RunFileError) as refused:
        local(tmp_path, data, ["roof", "panel"], class_names={"rof": "roof"})
    lines = str(refused.value).splitlines()
    key = "run.labeller.source.class_names"
    assert [line.split(": ")[0] for line in lines] == [key, key, f"{key}.rof"]
    assert "class Pannel of the dataset" in lines[0] and lines[0].endswith("did you mean `panel`?")
    assert "class tree of the dataset" in lines[1] and "no such class; did you mean `roof`?" in lines[2]
    with pytest.raises(RunFileError, match=r"class_names.tree: pannel is not in run.task.classes; did you mean `panel`"):
        local(tmp_path, data, ["roof", "panel"], class_names={"tree": "pannel"})


def test_a_label_that_is_no_class_costs_its_record_alone(tmp_path: Path) -> None:
    rows = pictures(4, label=lambda i: ["roof", "rooof", None, ""][i])
    records = list(local(tmp_path, parquet(rows), ["roof"]))
    found = [r.problem.reason if r.problem else r.label for r in records]
    assert found == ["roof", "unknown_label", "missing_field", "missing_field"]
    assert records[1].problem is not None and "did you mean `roof`" in records[1].problem.detail
    numbers = pictures(3, label=lambda i: [0, -1, 7][i])
    named = local(tmp_path, parquet(numbers, {"label": {"_type": "ClassLabel", "names": ["roof"]}}), ["roof"])
    assert [r.problem.reason if r.problem else r.label for r in named] == ["roof", "missing_field", "unknown_label"]


# --- before a server is asked ---


def test_a_dataset_without_a_revision_is_refused_before_anything_is_asked(tmp_path: Path) -> None:
    with pytest.raises(RunFileError, match=r"run\.labeller\.source\.revision: owner/name has none; pin the commit"):
        opened(tmp_path, dataset="owner/name")


def test_opening_and_the_fingerprint_ask_no_server(tmp_path: Path) -> None:
    source = opened(tmp_path, dataset="owner/name", revision=COMMIT)
    other = opened(tmp_path, dataset="owner/name", revision="1" * 40)
    assert source.fingerprint() != other.fingerprint()
    assert source.plan_lines() == [  # type: ignore[attr-defined]
        "all images of huggingface.co/datasets/owner/name at 000000000000, licence from its card"
    ]
