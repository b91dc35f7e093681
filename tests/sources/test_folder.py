from __future__ import annotations

import os
from pathlib import Path

import pytest

from pocketvlm.errors import DataError, RunFileError
from pocketvlm.run_file import FolderSource
from pocketvlm.sources.open import open_source
from pocketvlm.sources.record import Context, Record, SourceReader

CLASSES = ["Solar Panel", "roof"]


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    for name in ("roof/b.jpg", "roof/a.jpg", "solar panel/deep/er/c.png"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode())
    return folder


def opened(images: Path, *, labelled: bool = True, **settings: object) -> SourceReader:
    source = FolderSource.model_validate({"kind": "folder", "path": images.name, **settings})
    return open_source(source, Context(images.parent, CLASSES, labelled=labelled))


def reasons(records: SourceReader) -> dict[str, str]:
    return {record.source_id: record.problem.reason for record in records if record.problem}


def test_images_come_sorted_with_the_class_of_their_top_folder(images: Path) -> None:
    reader = opened(images, licence="CC0")
    assert list(reader) == [
        Record("roof/a.jpg", b"roof/a.jpg", label="roof", licence="CC0"),
        Record("roof/b.jpg", b"roof/b.jpg", label="roof", licence="CC0"),
        Record("solar panel/deep/er/c.png", b"solar panel/deep/er/c.png", label="Solar Panel", licence="CC0"),
    ]
    assert len(reader) == 3


def test_class_folders_maps_folders_to_classes(images: Path) -> None:
    (images / "roof").rename(images / "negative")
    labels = {record.label for record in opened(images, class_folders={"negative": "roof"})}
    assert labels == {"roof", "Solar Panel"}


def test_unknown_folders_are_all_listed_with_the_nearest_class(images: Path) -> None:
    (images / "rooof").mkdir()
    (images / "train").mkdir()
    with pytest.raises(RunFileError) as refused:
        opened(images)
    assert "folder rooof of images is no class; map it to a class here or move it away; did you mean `roof`?" in str(
        refused.value
    )
    assert "folder train" in str(refused.value)


def test_class_folders_that_lead_nowhere_are_refused(images: Path) -> None:
    with pytest.raises(RunFileError, match=r"class_folders.rof: no such folder in images; did you mean `roof`"):
        opened(images, class_folders={"rof": "roof"})
    with pytest.raises(RunFileError, match=r"class_folders.roof: rooof is not in run.task.classes; did you mean `roof`"):
        opened(images, class_folders={"roof": "rooof"})


def test_missing_folder_is_the_run_files_fault_and_one_without_classes_the_datas(tmp_path: Path) -> None:
    with pytest.raises(RunFileError, match=r"run.labeller.source.path: images is not a folder"):
        opened(tmp_path / "images")
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.jpg").write_bytes(b"a")
    with pytest.raises(DataError, match="has no class folders"):
        opened(tmp_path / "images")


def test_litter_is_passed_over_and_files_beside_the_class_folders_are_quarantined(images: Path) -> None:
    (images / "__MACOSX").mkdir()
    (images / "roof" / ".DS_Store").write_bytes(b"x")
    (images / "roof" / "Thumbs.db").write_bytes(b"x")
    (images / "README.md").write_bytes(b"x")
    reader = opened(images)
    assert len(reader) == 4
    assert reasons(reader) == {"README.md": "no_class_folder"}


def test_links_do_not_lead_out_of_the_folder(images: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "key.png").write_bytes(b"secret")
    (images / "roof" / "link.png").symlink_to(secret / "key.png")
    (images / "roof" / "folder").symlink_to(secret)
    (images / "solar panel" / "inside.png").symlink_to(images / "roof" / "a.jpg")
    (images / "solar panel" / "loop.png").symlink_to("loop.png")
    reader = opened(images)
    assert reasons(reader) == {
        "roof/link.png": "outside_folder",
        "roof/folder": "linked_folder",
        "solar panel/loop.png": "unreadable_file",
    }
    assert not any(record.data == b"secret" for record in reader)


def test_linked_class_folder_is_not_followed(images: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "x.png").write_bytes(b"x")
    (images / "solar panel" / "deep" / "er" / "c.png").unlink()
    (images / "solar panel" / "deep" / "er").rmdir()
    (images / "solar panel" / "deep").rmdir()
    (images / "solar panel").rmdir()
    (images / "solar panel").symlink_to(tmp_path / "elsewhere")
    assert reasons(opened(images)) == {"solar panel": "linked_folder"}


def test_pipe_among_the_images_does_not_block(images: Path) -> None:
    os.mkfifo(images / "roof" / "pipe.jpg")
    assert reasons(opened(images)) == {"roof/pipe.jpg": "not_a_file"}


def test_name_that_is_not_utf8_is_kept_readable(images: Path) -> None:
    (images / "roof" / os.fsdecode(b"caf\xe9.jpg")).write_bytes(b"x")
    ids = [record.source_id for record in opened(images)]
    assert "roof/caf\\xe9.jpg" in ids
    assert len(opened(images).fingerprint()) == 64


def test_fingerprint_follows_names_and_content_and_nothing_else(images: Path, tmp_path: Path) -> None:
    before = opened(images).fingerprint()
    os.utime(images / "roof" / "a.jpg", (0, 0))
    images.rename(tmp_path / "moved")
    moved = tmp_path / "moved"
    assert opened(moved).fingerprint() == before
    (moved / "roof" / "a.jpg").write_bytes(b"roof/A.jpg")
    changed = opened(moved).fingerprint()
    assert changed != before
    (moved / "roof" / "a.jpg").rename(moved / "roof" / "z.jpg")
    assert opened(moved).fingerprint() not in (before, changed)


def test_with_a_teacher_images_may_lie_anywhere_and_have_no_label(images: Path) -> None:
    (images / "unknown folder").mkdir()
    (images / "unknown folder" / "x.jpg").write_bytes(b"x")
    (images / "top.jpg").write_bytes(b"top")
    records = list(opened(images, labelled=False, licence="CC0"))
    assert [record.source_id for record in records] == [
        "roof/a.jpg", "roof/b.jpg", "solar panel/deep/er/c.png", "top.jpg", "unknown folder/x.jpg",
    ]  # fmt: skip
    assert all(record.data and not record.problem for record in records)
    assert {(record.label, record.licence) for record in records} == {("", "CC0")}


def test_class_folders_without_effect_are_refused(images: Path) -> None:
    with pytest.raises(RunFileError, match="class_folders: is without effect, since the teacher labels"):
        opened(images, labelled=False, class_folders={"roof": "roof"})
