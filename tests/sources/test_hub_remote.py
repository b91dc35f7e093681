"""`hub` on the Hub: its real client, in a process of its own, against a server of the Hub's layout on loopback."""

from __future__ import annotations

import hashlib
import io
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hub_reader import Reader, reading
from hub_sets import COMMIT, NAMES, parquet, pictures
from mars import texture, write_mars
from serve_hub import FakeHub, Fault, Repository, serving


@pytest.fixture(scope="module")
def hub() -> Iterator[FakeHub]:
    with serving() as server:
        yield server


@pytest.fixture(scope="module")
def reader(hub: FakeHub, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reader]:
    with reading(hub.url, tmp_path_factory.mktemp("reader")) as reader:
        yield reader


@pytest.fixture
def put(hub: FakeHub, request: pytest.FixtureRequest) -> Callable[..., str]:
    """Puts a folder, or files, on the Hub under a name that no other test has; the list of requests begins anew."""

    def do(files: Path | dict[str, bytes], **settings: Any) -> str:
        if isinstance(files, Path):
            files = {path.relative_to(files).as_posix(): path.read_bytes() for path in files.rglob("*") if path.is_file()}
        name = f"owner/set-{len(hub.repositories)}"
        hub.repositories[name] = Repository(files, **settings)
        hub.asked.clear()
        return name

    return do


def test_a_dataset_of_the_hub_is_right_to_the_row_and_leaves_nothing_on_disk(
    reader: Reader, put: Callable[..., str], tmp_path: Path
) -> None:
    expected = write_mars(tmp_path / "mars", 4, 32)
    name = put(tmp_path / "mars", page_entries=3)
    told = reader.read(NAMES, dataset=name, cache=tmp_path / "cache")
    assert [(r["source_id"], r["label"], r["sha256"]) for r in told["records"]] == [
        (e.source_id, e.label, e.sha256) for e in expected
    ]
    first = told["records"][0]
    assert (first["author"], first["licence"]) == ("owner", "cc-by-4.0")
    assert first["url"] == f"https://huggingface.co/datasets/{name}/blob/{COMMIT}/data/train-00000-of-00002.parquet"
    assert (told["len"], told["piece"]) == (60, 64)
    assert not (tmp_path / "cache").exists() and list((reader.folder / "home").rglob("*")) == []
    assert told["heavy"] == []


def test_a_few_images_of_large_shards_are_read_without_the_rest(
    reader: Reader, put: Callable[..., str], hub: FakeHub, tmp_path: Path
) -> None:
    from numpy.random import default_rng

    noise = default_rng(0)
    rows = [{"image": {"bytes": noise.bytes(20_000), "path": None}, "label": "a"} for _ in range(300)]
    files = {f"data/train-{i:05d}-of-00003.parquet": parquet(rows, row_group_rows=50) for i in range(3)}
    name = put(files)
    total = sum(map(len, files.values()))
    assert reader.read(["a"], dataset=name, limit=100)["len"] == 100
    sent = sum(asked.sent_bytes for asked in hub.asked)
    assert sent < total / 5  # two or three of eighteen row groups
    assert {asked.path.rpartition("/")[2] for asked in hub.asked if ".parquet" in asked.path} == {"train-00000-of-00003.parquet"}
    hub.asked.clear()
    told = reader.read(["a"], dataset=name, places=(870, 875, 1))
    assert [r["source_id"] for r in told["records"]] == [f"train/{i:08d}" for i in range(870, 875)]
    assert sum(asked.sent_bytes for asked in hub.asked) < total / 10
    hub.asked.clear()
    reader.read(["a"], dataset=name, places=(875, 880, 1), again=True)
    assert hub.asked == []  # the next piece goes on in what is open


def test_splits_and_configurations_come_from_the_card(reader: Reader, put: Callable[..., str]) -> None:
    card = """---
license: [mit, cc0-1.0]
configs:
- config_name: big
  data_files:
  - {split: test, path: "b/t*.parquet"}
  - {split: extra, path: ["b/x.parquet", "b/sub/**"]}
- config_name: small
  data_files: "s/*.parquet"
---
"""
    data = {key: parquet([{"image": key.encode(), "label": "a"}]) for key in ("b/t1", "b/t0", "b/x", "b/sub/y/z", "s/1")}
    name = put({"README.md": card.encode(), **{f"{key}.parquet": value for key, value in data.items()}})
    told = reader.read(["a"], dataset=name)
    assert told["error"] == "RunFileError"
    assert "source.config: the dataset has the configurations big, small; name one" in told["message"]
    told = reader.read(["a"], dataset=name, config="big")
    assert [r["source_id"] for r in told["records"]] == ["test/00000000", "test/00000001", "extra/00000000", "extra/00000001"]
    assert told["records"][0]["url"].endswith("/b/t0.parquet") and told["records"][0]["licence"] == "mit, cc0-1.0"
    assert [r["source_id"] for r in reader.read(["a"], dataset=name, config="small")["records"]] == ["train/00000000"]
    told = reader.read(["a"], dataset=name, config="bigg")
    assert "no configuration bigg, but big, small; did you mean `big`?" in told["message"]
    assert len(reader.read(["a"], dataset=name, config="big", split="extra", licence="own")["records"]) == 2


def test_features_come_from_the_card_where_the_files_do_not_tell(reader: Reader, put: Callable[..., str]) -> None:
    card = """---
dataset_info:
  features:
  - {name: image, dtype: image}
  - name: sort
    dtype: {class_label: {names: {'0': roof, '1': tree}}}
---
"""
    name = put({"README.md": card.encode(), "train.parquet": parquet(pictures(2, sort=lambda i: 1 - i))})
    assert [r["label"] for r in reader.read(["Tree", "Roof"], dataset=name)["records"]] == ["Tree", "Roof"]
    assert "class tree of the dataset" in reader.read(["Roof"], dataset=name)["message"]


BOMB = "---\na0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 12)
)
"""A line for each power of ten: written out, its last list has 10^12 items."""


@pytest.mark.parametrize("card", [
    b"", b"---\n: [\n---\n", b"no head at all", b"---\n- a list\n---\n", b"\xff\xfe",
    f"{BOMB}license: *a11\ndataset_info: {{features: [{{name: *a11, dtype: image}}, {{name: label, dtype: "
    f"{{class_label: {{names: *a11}}}}}}]}}\n---\n".encode(),
], ids=["empty", "broken", "no head", "a list", "no text", "bomb"])  # fmt: skip
def test_a_card_that_cannot_be_read_is_no_card(card: bytes, reader: Reader, put: Callable[..., str]) -> None:
    name = put({"README.md": card, "train.parquet": parquet(pictures(1, label=lambda i: "a"))})
    assert [(r["label"], r["licence"]) for r in reader.read(["a"], dataset=name)["records"]] == [("a", None)]


@pytest.mark.parametrize("pattern", ["http://127.0.0.1:1/a.parquet", "/etc/passwd", "../../secret.parquet", "**.parquet"])
def test_a_card_cannot_name_files_of_others(pattern: str, reader: Reader, put: Callable[..., str], hub: FakeHub) -> None:
    card = f"---\nconfigs:\n- config_name: a\n  data_files: '{pattern}'\n---\n"
    name = put({"README.md": card.encode(), "a.parquet": parquet(pictures(1, label=lambda i: "a"))})
    told = reader.read(["a"], dataset=name)
    assert told["error"] == "DataError" and pattern in told["message"]


def test_images_that_lie_beside_their_table_are_read_and_those_of_others_are_not(reader: Reader, put: Callable[..., str]) -> None:
    paths = ["img/a.png", "../img/a.png", "/etc/passwd", "http://127.0.0.1:1/a.png", "hf://datasets/other/set/a.png"]
    rows = [{"image": {"bytes": None, "path": path}, "label": "a"} for path in paths]
    kinds = pa.schema([("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])), ("label", pa.string())])
    out = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, schema=kinds), out)
    name = put({"train.parquet": out.getvalue(), "img/a.png": b"inside"})
    told = reader.read(["a"], dataset=name)
    assert [r["problem"] for r in told["records"]] == [None, "missing_file", "missing_file", "outside_dataset", "outside_dataset"]
    assert told["records"][0]["url"].endswith("/img/a.png")


# --- when the Hub does not answer ---


@pytest.mark.parametrize("fault", [Fault("500", "store", 1), Fault("429", "tree", 1), Fault("cut", "store", 1),
                                   Fault("cut", "README", 1)], ids=lambda fault: f"{fault.kind} {fault.where}")  # fmt: skip
def test_a_fault_that_passes_is_not_noticed(fault: Fault, reader: Reader, put: Callable[..., str], hub: FakeHub) -> None:
    rows = pictures(30, label=lambda i: "a")
    name = put({"README.md": b"---\nlicense: mit\n---\n", "train.parquet": parquet(rows)}, faults=[fault])
    told = reader.read(["a"], dataset=name)
    assert fault.times == 0
    assert (told["len"], {r["licence"] for r in told["records"]}) == (30, {"mit"})


def test_a_hub_that_keeps_asking_to_come_back_later_is_unavailable(reader: Reader, put: Callable[..., str]) -> None:
    name = put({"train.parquet": parquet(pictures(1, label=lambda i: "a"))}, faults=[Fault("429", "store")])
    told = reader.read(["a"], dataset=name)
    assert told["error"] == "HubUnavailable"
    assert "run.labeller.source.dataset: " in told["message"] and "train.parquet" in told["message"]


@pytest.mark.parametrize(
    ("gated", "token", "error", "advice"),
    [
        (False, None, "CredentialsError", "check the name, the revision and HF_TOKEN"),
        (False, "wrong", "CredentialsError", "check the name, the revision and HF_TOKEN"),
        (True, "wrong", "CredentialsError", "accept its terms on its page"),
        (True, "right", None, ""),
    ],
)
def test_a_closed_dataset_wants_its_token(
    gated: bool, token: str | None, error: str | None, advice: str, reader: Reader, put: Callable[..., str], hub: FakeHub
) -> None:
    name = put({"train.parquet": parquet(pictures(1, label=lambda i: "a"))}, token="right", gated=gated)
    told = reader.read(["a"], dataset=name, token=token)
    assert told.get("error") == error and advice in told.get("message", "")
    assert {asked.token for asked in hub.asked} == {token}
    assert "right" not in told.get("message", "")


def test_what_is_not_there_is_the_run_files_fault(reader: Reader, put: Callable[..., str]) -> None:
    name = put({"train.parquet": parquet(pictures(1, label=lambda i: "a"))}, revision="1" * 40)
    told = reader.read(["a"], dataset=name)
    assert told["error"] == "RunFileError" and "RevisionNotFound" in told["message"]
    told = reader.read(["a"], dataset="owner/nowhere", token="some")
    assert told["error"] == "RunFileError" and "run.labeller.source.dataset: owner/nowhere at 000" in told["message"]
    told = reader.read(["a"], dataset=put({"a.csv": b"x\n1\n"}))
    assert told["error"] == "DataError" and "no images that can be read, only .csv" in told["message"]


# --- other layouts ---


def test_an_image_folder_is_read_file_by_file(reader: Reader, put: Callable[..., str], hub: FakeHub, tmp_path: Path) -> None:
    names = ["cra", "rid", "smo"]
    files = {f"{split}/{kind}/{i}.jpg": texture(kind, i, 16) for split in ("train", "test") for kind in names for i in range(2)}
    name = put({**files, "README.md": b"---\nlicense: other\nlicense_name: of-our-own\n---\n"})
    told = reader.read(names, dataset=name, cache=tmp_path / "cache")
    assert [r["source_id"] for r in told["records"][5:7]] == ["train/00000005", "test/00000000"]
    assert [r["label"] for r in told["records"]] == [kind for _ in range(2) for kind in names for _ in range(2)]
    assert told["records"][-1]["url"].endswith("/test/smo/1.jpg") and told["records"][0]["licence"] == "of-our-own"
    hub.asked.clear()
    told = reader.read(names, dataset=name, cache=tmp_path / "cache", places=(7, 12, 3))
    assert [(r["source_id"], r["label"]) for r in told["records"]] == [("test/00000001", "cra"), ("test/00000004", "smo")]
    fetched = {asked.path.partition(COMMIT + "/")[2] for asked in hub.asked if asked.path.endswith(".jpg")}
    assert fetched == {"test/cra/1.jpg", "test/smo/0.jpg"}
    assert list((reader.folder / "home").rglob("*")) == []


def test_a_cache_that_cannot_be_written_names_its_variable(reader: Reader, put: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file where the folder should be")
    name = put({f"{kind}/1.jpg": b"image" for kind in ("cra", "rid")})
    told = reader.read(["cra", "rid"], dataset=name, cache=tmp_path / "cache")
    assert told["error"] == "UserError" and "POCKETVLM_CACHE" in told["message"]


def tar(shard: int, count: int) -> bytes:
    """A WebDataset shard: `cls` is the parity of the image's number."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as file:
        for i in range(count):
            for end, data in (("jpg", b"image %d" % (shard * count + i)), ("cls", str(i % 2).encode())):
                info = tarfile.TarInfo(f"{shard}-{i}.{end}")
                info.size = len(data)
                file.addfile(info, io.BytesIO(data))
    return out.getvalue()


def test_tar_files_are_copied_once_and_only_as_far_as_the_limit(
    reader: Reader, put: Callable[..., str], hub: FakeHub, tmp_path: Path
) -> None:
    name = put({f"train-{shard}.tar": tar(shard, 10) for shard in range(3)})
    settings: dict[str, Any] = {"dataset": name, "class_names": {"0": "a", "1": "b"}, "cache": tmp_path / "cache"}
    told = reader.read(["a", "b"], limit=7, **settings)
    assert [r["label"] for r in told["records"]] == [*["a", "b"] * 3, "a"]
    assert told["records"][6]["url"] == f"https://huggingface.co/datasets/{name}/tree/{COMMIT}"
    assert {asked.path[-11:] for asked in hub.asked if asked.sent_bytes and asked.path.endswith(".tar")} == {"train-0.tar"}
    told = reader.read(["a", "b"], **settings)
    assert [r["sha256"] for r in told["records"]] == [hashlib.sha256(b"image %d" % i).hexdigest() for i in range(30)]
    assert reader.read(["a", "b"], places=(29, 30, 1), **settings)["records"][0]["source_id"] == "train/00000029"
    assert list((reader.folder / "home").rglob("*")) == []


def test_a_copy_that_was_interrupted_goes_on_in_the_archive_where_it_was(
    reader: Reader, put: Callable[..., str], hub: FakeHub, tmp_path: Path
) -> None:
    name = put({f"train-{shard}.tar": tar(shard, 600) for shard in range(3)})
    settings: dict[str, Any] = {"dataset": name, "labelled": False, "cache": tmp_path / "cache"}
    fault = Fault("403", "train-2.tar")
    hub.repositories[name].faults = [fault]
    assert reader.read([], **settings)["error"] == "CredentialsError"
    first = sum(asked.sent_bytes for asked in hub.asked if asked.path.endswith("train-0.tar"))
    fault.times = 0
    hub.asked.clear()
    told = reader.read([], **settings)
    assert [r["sha256"] for r in told["records"]] == [hashlib.sha256(b"image %d" % i).hexdigest() for i in range(1800)]
    again = sum(asked.sent_bytes for asked in hub.asked if asked.path.endswith("train-0.tar"))
    assert again <= first / 2  # `datasets` looks at its first images again, to see what columns there are
