"""Archives give what the unpacked folder gives."""

from __future__ import annotations

import io
import shutil
import tarfile
import time
import zipfile
from pathlib import Path
from typing import Any

import pytest

from pocketvlm.environment import Environment
from pocketvlm.errors import DataError, RunFileError
from pocketvlm.run_file.source import ArchiveSource, FolderSource
from pocketvlm.sources.open import open_source
from pocketvlm.sources.record import Context, Record, SourceReader

CLASSES = ["Solar Panel", "roof"]
SUFFIXES = [".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz"]
FILES = {
    "roof/b.jpg": b"roof b", "roof/a.jpg": b"roof a", "solar panel/deep/er/c.png": b"panel c" * 5000,
    "solar panel/empty.png": b"",
    "roof/.DS_Store": b"x", "roof/.hidden/d.jpg": b"x", "__MACOSX/roof/._a.jpg": b"x", "solar panel/Thumbs.db": b"x",
    "README.md": b"readme", "roof/ümläut \u2603.jpg": b"snow", "roof/Z.jpg": b"z", "roof/a/b.jpg": b"deep",
}  # fmt: skip


def packed(path: Path, files: dict[str, bytes]) -> Path:
    """An archive of the kind that its name says, in the order given."""
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, data in files.items():
                archive.writestr(name, data)
        return path
    kind = {".gz": "gz", ".tgz": "gz", ".bz2": "bz2", ".xz": "xz"}.get(path.suffix, "")
    with tarfile.open(path, f"w:{kind}") as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def opened(path: Path, *, labelled: bool = True, **settings: Any) -> SourceReader:
    source = ArchiveSource.model_validate({"kind": "archive", "path": path.name, **settings})
    environment = Environment(scratch=path.parent / "scratch")
    return open_source(source, Context(path.parent, CLASSES, labelled=labelled, environment=environment))


def unpacked(folder: Path, files: dict[str, bytes], **settings: Any) -> list[Record]:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    labelled = settings.pop("labelled", True)
    source = FolderSource.model_validate({"kind": "folder", "path": folder.name, **settings})
    return list(open_source(source, Context(folder.parent, CLASSES, labelled=labelled)))


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("labelled", [True, False])
def test_archive_gives_the_same_records_as_the_unpacked_folder(tmp_path: Path, suffix: str, labelled: bool) -> None:
    expected = unpacked(tmp_path / "images", FILES, licence="CC0", labelled=labelled)
    reader = opened(packed(tmp_path / f"images{suffix}", FILES), licence="CC0", labelled=labelled)
    assert list(reader) == expected
    assert len(reader) == len(expected) == 8
    assert list(reader.records(range(6, 1, -3))) == [expected[6], expected[3]]


@pytest.mark.parametrize("suffix", [".zip", ".tar.gz"])
def test_inside_names_the_folder_that_holds_the_class_folders(tmp_path: Path, suffix: str) -> None:
    deep = {f"./set/v1/{name}": data for name, data in FILES.items()} | {"set/other/x.jpg": b"x", "top.txt": b"x"}
    path = packed(tmp_path / f"images{suffix}", deep)
    assert list(opened(path, inside="set/v1/")) == unpacked(tmp_path / "images", FILES)
    with pytest.raises(RunFileError, match="no folder seet; did you mean `set`"):
        opened(path, inside="seet")
    with pytest.raises(RunFileError, match="leads out of"):
        opened(path, inside="../set")
    with pytest.raises(RunFileError, match=r"folder set of images.* is no class.*\n.*inside: if the class folders .* write set"):
        opened(path)


def test_class_folders_and_their_mistakes_are_those_of_a_folder(tmp_path: Path) -> None:
    path = packed(tmp_path / "images.zip", {"negative/a.jpg": b"a", "solar panel/b.jpg": b"b"})
    assert [record.label for record in opened(path, class_folders={"negative": "roof"})] == ["roof", "Solar Panel"]
    with pytest.raises(RunFileError, match=r"folder negative of images.zip is no class"):
        opened(path)
    with pytest.raises(RunFileError, match=r"class_folders.x: no such folder in images.zip"):
        opened(path, class_folders={"x": "roof", "negative": "roof"})


def test_wrong_paths_are_the_run_files_fault_and_empty_archives_the_datas(tmp_path: Path) -> None:
    with pytest.raises(RunFileError, match=r"run.labeller.source.path: none.zip is not a file"):
        opened(tmp_path / "none.zip")
    (tmp_path / "images.rar").write_bytes(b"Rar!")
    with pytest.raises(RunFileError, match=r"must end in \.zip"):
        opened(tmp_path / "images.rar")
    with pytest.raises(DataError, match="holds no files"):
        opened(packed(tmp_path / "empty.zip", {}))
    with pytest.raises(DataError, match="holds no files"):
        opened(packed(tmp_path / "empty.tar", {}))
    with pytest.raises(DataError, match="has no class folders"):
        opened(packed(tmp_path / "flat.zip", {"a.jpg": b"a"}))


def test_fingerprint_follows_bytes_and_settings_and_not_the_name(tmp_path: Path) -> None:
    path = packed(tmp_path / "images.zip", FILES)
    before = opened(path).fingerprint()
    moved = Path(shutil.move(path, tmp_path / "moved.zip"))
    assert opened(moved).fingerprint() == before
    assert opened(moved, max_ratio=50).fingerprint() != before
    with moved.open("ab") as file:
        file.write(b"\0")
    assert opened(moved).fingerprint() != before


@pytest.mark.parametrize("suffix", [".zip", ".tar", ".tar.gz"])
def test_pieces_of_records_cost_no_more_than_all_at_once(tmp_path: Path, suffix: str) -> None:
    """A compressed tar has no places to jump to: read from its start for each piece, this takes 100 times as long."""
    files = {f"roof/{index:05d}.jpg": index.to_bytes(4, "big") * 3000 for index in range(2000)}
    reader = opened(packed(tmp_path / f"images{suffix}", dict(reversed(files.items()))))
    began = time.process_time()
    for first in range(0, 2000, 20):
        for place, record in enumerate(reader.records(range(first, first + 20)), start=first):
            assert record.data == files[f"roof/{place:05d}.jpg"]
    assert time.process_time() - began < 5
    assert list((tmp_path / "scratch").iterdir()) == [] if suffix == ".tar.gz" else not (tmp_path / "scratch").exists()


def test_archive_of_several_gzip_streams_is_read_whole(tmp_path: Path) -> None:
    """As pigz and `cat a.gz b.gz` write it, with the padding of a tape."""
    import gzip

    plain = packed(tmp_path / "images.tar", FILES).read_bytes()
    third = len(plain) // 3
    parts = (plain[:third], plain[third : 2 * third], plain[2 * third :])
    (tmp_path / "images.tar.gz").write_bytes(b"".join(map(gzip.compress, parts)) + bytes(5000))
    assert list(opened(tmp_path / "images.tar.gz")) == list(opened(tmp_path / "images.tar"))
