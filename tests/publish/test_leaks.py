"""The leak gate: each fault is planted in a release, and nothing is sent."""

from __future__ import annotations

import io
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import finished
import pytest
from finished import Finished, rows
from PIL import Image, PngImagePlugin
from pydantic import SecretStr

from pocketvlm.environment import Environment
from pocketvlm.errors import DataError
from pocketvlm.publish.files import Repository, Upload
from pocketvlm.publish.leaks import Known, leaks

SECRET = "sesame-0123456789"
TEXTS = {
    "/home/anna/models/base": "a local path",
    "/Users/anna/run.yaml": "a local path",
    "/tmp/scratch/x": "a local path",
    "C:\\Users\\anna\\model": "a local path",
    "~/models/base": "a local path",
    "s3://bucket/prefix": "a local or internal address",
    "http://10.0.0.7:9000/x": "a local or internal address",
    "http://minio/x": "a local or internal address",
    "object-store.ns.svc.cluster.local": "a local or internal address",
    "file:///srv/x": "a local or internal address",
    "https://anna:word@example.com/x": "an address with a password",
    "https://example.com/x?X-Amz-Signature=abc": "an address with a password",
    "hf_abcdefghijklmnopqrst": "a key",
    "sk-proj-abcdefghijklmnopqrst": "a key",
    "anna@example.com": "an e-mail address",
    "chatcmpl-abcdefghijklmnop": "a teacher's request or its cost",
    '"teacher_cost": 0.01': "a teacher's request or its cost",
    SECRET: "the secret of OPENAI_API_KEY",
}  # fmt: skip
HARMLESS = (
    "https://live.staticflickr.com/65535/1_2.jpg", "https://example.com/home/anna/x.jpg", "and/or",
    "root ::= \" a/b\" [^\\n]+ \"\\nA:\\n\"", "Attribution License (http://creativecommons.org/licenses/by/2.0/)",
    "<|im_start|>User:<__media__>Which? water/fire",
    "https://huggingface.co/datasets/us/digits-data", "at 2.0e-4, w/ 3 epochs", "a cost of living", "task-0123", "Q:\\nA:\\n",
)  # fmt: skip


def known(tmp_path: Path) -> Known:
    return Known.of(Environment(store=str(tmp_path / "store"), teacher_key=SecretStr(SECRET)))


def upload(path: Path, name: str) -> list[Upload]:
    repository = Repository("us/x", "model")
    repository.add(name, path)
    return repository.files


@pytest.mark.parametrize("text", TEXTS)
def test_each_kind_of_leak_is_found_in_a_text_file(tmp_path: Path, text: str) -> None:
    (tmp_path / "card.md").write_text(f"one line\nand {text} here\n")
    (found,) = leaks(upload(tmp_path / "card.md", "card.md"), known(tmp_path))[:1]
    assert found.startswith("card.md, line 2: ")
    assert TEXTS[text] in found
    assert SECRET not in found


@pytest.mark.parametrize("text", HARMLESS)
def test_what_only_looks_like_one_is_let_through(tmp_path: Path, text: str) -> None:
    (tmp_path / "card.md").write_text(text)
    assert leaks(upload(tmp_path / "card.md", "card.md"), known(tmp_path)) == []


def test_the_store_and_the_name_of_this_machine_are_found(tmp_path: Path) -> None:
    of_this = Known.of(Environment(store="s3x://quiet-bucket/place", endpoint_url="https://minio.example.org"))
    assert (socket.gethostname() in of_this.places) == (len(socket.gethostname()) >= 4 and socket.gethostname() != "localhost")
    places = Known({}, {**of_this.places, "annas-laptop": "the name of this machine"})
    for text in ("s3x://quiet-bucket/place", "https://minio.example.org", "made on annas-laptop."):
        (tmp_path / "card.md").write_text(text)
        assert len(leaks(upload(tmp_path / "card.md", "card.md"), places)) == 1
    (tmp_path / "card.md").write_text("made on annas-laptop-2")
    assert leaks(upload(tmp_path / "card.md", "card.md"), places) == []


PLANTED: dict[str, dict[str, Any]] = {
    "text-q8_0.gguf, key general.name": {"gguf_keys": {"general.architecture": "llama", "general.name": "/home/anna/models/x"}},
    "merged/model.safetensors, metadata origin": {"metadata": {"origin": "/home/anna/models/x"}},
    "merged/config.json, line 1": {"merged": {"config.json": '{"_name_or_path": "/home/anna/models/x"}'}},
    "prompt.txt, line 1": {"texts": {"prompt.txt": "<__media__>as in /home/anna/models/x"}},
    "column teacher_reason": {"rows": rows(teacher_reason="it says anna@example.com on the sign")},
    "column author": {"rows": rows(author="anna@example.com")},
    "text-q8_0.gguf, key tokenizer.ggml.tokens": {"vocabulary": ["zero", SECRET]},
}  # fmt: skip


@pytest.mark.parametrize("where", PLANTED)
def test_a_leak_in_any_part_of_a_release_stops_everything(release: Callable[..., Any], where: str) -> None:
    desk = release(**PLANTED[where])
    desk.environment = desk.environment.model_copy(update={"teacher_key": SecretStr(SECRET)})
    for yes in (False, True):
        with pytest.raises(DataError, match="nothing was sent") as caught:
            desk.publish(yes=yes)
        assert where in str(caught.value)
        assert SECRET not in str(caught.value)
    assert desk.hub.writes == []


def test_notes_of_a_camera_in_an_image_are_found(tmp_path: Path) -> None:
    notes = PngImagePlugin.PngInfo()
    notes.add_text("Author", "Anna")
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png", pnginfo=notes)
    (found,) = leaks(upload(tmp_path / "a.png", "a.png"), known(tmp_path))
    assert "notes of a camera or a program (tEXt)" in found
    plain = io.BytesIO()
    Image.new("RGB", (4, 4)).save(plain, "PNG")
    (tmp_path / "a.png").write_bytes(plain.getvalue() + b"more")
    assert "4 bytes behind its end" in leaks(upload(tmp_path / "a.png", "a.png"), known(tmp_path))[0]


@pytest.mark.parametrize(("name", "data"), [
    ("a.bin", b"\xff\xfe\x00"), ("a.gguf", b"GGUF\x03"), ("a.gguf", b"nothing"), ("a.safetensors", b"\xff" * 16),
    ("a.parquet", b"PAR1"), ("a.png", b"GIF89a"),
])  # fmt: skip
def test_what_cannot_be_looked_into_is_refused(tmp_path: Path, name: str, data: bytes) -> None:
    (tmp_path / name).write_bytes(data)
    (found,) = leaks(upload(tmp_path / name, name), known(tmp_path))
    assert "cannot be looked into" in found


def test_a_file_name_can_leak_too(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("harmless")
    (found,) = leaks(upload(tmp_path / "x", "notes of anna@example.com"), known(tmp_path))
    assert "name: holds an e-mail address" in found


def test_the_finished_run_of_these_tests_is_clean(tmp_path: Path) -> None:
    data = finished.gguf(Finished({}, {}).gguf_keys, Finished({}, {}).vocabulary, b"noise")
    (tmp_path / "a.gguf").write_bytes(data)
    assert leaks(upload(tmp_path / "a.gguf", "a.gguf"), known(tmp_path)) == []
