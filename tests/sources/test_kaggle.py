"""Kaggle's own client against a server that answers the endpoint that it calls."""

from __future__ import annotations

import base64
import io
import json
import socket
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

pytest.importorskip("kagglesdk", reason="Kaggle's client is not installed")
sys.path.insert(0, str(Path(__file__).parent))

from raw_server import Asked, RawServer, http

from pocketvlm.environment import Environment
from pocketvlm.errors import CredentialsError, DataError, RunFileError, SourceUnavailable
from pocketvlm.run_file.source import FolderSource, KaggleSource
from pocketvlm.sources.kaggle import Kaggle, patient
from pocketvlm.sources.open import open_source
from pocketvlm.sources.record import Context

CLASSES = ["dusty", "clean"]
FILES = {"set/Dusty/b.jpg": b"dusty b" * 1000, "set/Dusty/a.jpg": b"dusty", "set/Clean/x/c.png": b"clean", "set/notes.txt": b"n"}
ENDPOINT = "/v1/datasets.DatasetApiService/DownloadDataset"


def zipped() -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in FILES.items():
            archive.writestr(name, data)
    return out.getvalue()


@pytest.fixture
def server() -> Iterator[RawServer]:
    """Sends on to a storage server, as Kaggle does; knows version 3 of one dataset and one user."""
    body = zipped()
    with RawServer({"/bucket/archive.zip?signature=s": http(body, Content_Type="application/zip")}) as storage:

        def download(client: socket.socket, asked: Asked) -> None:
            wanted = json.loads(asked.body)
            known = {"ownerSlug": "owner", "datasetSlug": "panels", "datasetVersionNumber": 3}
            if asked.headers.get("authorization") != f"Basic {base64.b64encode(b'me:canary-key').decode()}":
                client.sendall(http(b'{"code":401,"message":"Unauthenticated"}', 401, Content_Type="application/json"))
            elif {key: wanted.get(key) for key in known} != known:
                client.sendall(http(b'{"code":404,"message":"Not found"}', 404, Content_Type="application/json"))
            else:
                client.sendall(http(b"", 302, Location=f"{storage.url}/bucket/archive.zip?signature=s"))

        with RawServer({ENDPOINT: download}) as api:
            api.storage = storage  # type: ignore[attr-defined]
            yield api


def opened(server: RawServer, folder: Path, *, user: str = "me", key: str = "canary-key", **settings: Any) -> Kaggle:
    from kagglesdk.kaggle_env import KaggleEnv
    from kagglesdk.kaggle_http_client import KaggleHttpClient

    def connect(user: str, key: str) -> KaggleHttpClient:
        client = KaggleHttpClient(KaggleEnv.PROD, username=user, password=key)
        client._endpoint = server.url  # the client knows its own servers only
        return patient(client, user, key)

    values = {"kind": "kaggle", "dataset": "owner/panels", "version": 3, "inside": "set", **settings}
    environment = Environment(cache=folder / "cache", kaggle_user=user or None, kaggle_key=SecretStr(key) if key else None)
    return Kaggle(KaggleSource.model_validate(values), Context(folder, CLASSES, environment=environment), connect=connect)


def test_dataset_gives_the_same_records_as_the_unpacked_folder_and_is_downloaded_once(server: RawServer, tmp_path: Path) -> None:
    for name, data in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(data)
    folder = FolderSource(kind="folder", path="set", licence="CC0")
    expected = list(open_source(folder, Context(tmp_path, CLASSES)))
    for _ in range(2):
        reader = opened(server, tmp_path, licence="CC0")
        assert list(reader) == expected
        assert len(reader) == 4
    assert server.paths() == [ENDPOINT]
    assert [path.name for path in (tmp_path / "cache/kaggle/owner/panels").iterdir()] == ["3.zip"]
    assert all("authorization" not in asked.headers for asked in server.storage.asked)  # type: ignore[attr-defined]


def test_fingerprint_asks_no_server_and_follows_version_and_settings(server: RawServer, tmp_path: Path) -> None:
    prints = {opened(server, tmp_path, **settings).fingerprint()
              for settings in ({}, {"version": 4}, {"dataset": "owner/other"}, {"inside": ""}, {"licence": "MIT"})}  # fmt: skip
    assert len(prints) == 5
    assert opened(server, tmp_path, user="", key="").fingerprint() in prints
    assert server.connections == 0


@pytest.mark.parametrize(("user", "key"), [("", ""), ("me", ""), ("", "canary-key")])
def test_missing_credentials_name_both_variables_and_their_files(server: RawServer, tmp_path: Path, user: str, key: str) -> None:
    with pytest.raises(CredentialsError, match="KAGGLE_USERNAME and KAGGLE_KEY, or KAGGLE_USERNAME_FILE and KAGGLE_KEY_FILE"):
        len(opened(server, tmp_path, user=user, key=key))
    assert server.connections == 0


def test_token_of_the_environment_does_not_take_the_place_of_the_credentials(
    server: RawServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KAGGLE_API_TOKEN", "somebody-else")
    assert len(opened(server, tmp_path)) == 4


def test_refused_key_and_unknown_version_are_a_persons_to_change(server: RawServer, tmp_path: Path) -> None:
    with pytest.raises(CredentialsError, match="refuses these credentials") as refused:
        len(opened(server, tmp_path, key="wrong-canary"))
    assert "wrong-canary" not in str(refused.value)
    with pytest.raises(RunFileError, match="owner/panels version 9: Kaggle has no such dataset or version"):
        len(opened(server, tmp_path, version=9))


def test_download_that_stops_or_fails_leaves_nothing_that_is_taken_for_the_dataset(server: RawServer, tmp_path: Path) -> None:
    whole = zipped()
    storage = server.storage.routes  # type: ignore[attr-defined]
    path = "/bucket/archive.zip?signature=s"
    good = storage[path]

    def cut(client: socket.socket, asked: Asked) -> None:
        client.sendall(http(whole)[:-100])
        client.shutdown(socket.SHUT_RDWR)

    for bad, error in ((cut, SourceUnavailable), (http(b"", 503), SourceUnavailable), (http(b"<html>sorry</html>"), DataError)):
        storage[path] = bad
        with pytest.raises(error):
            len(opened(server, tmp_path))
        assert not (tmp_path / "cache" / "kaggle" / "owner" / "panels" / "3.zip").exists()
    storage[path] = good
    assert len(opened(server, tmp_path)) == 4


def test_server_that_is_not_there_is_unavailable(tmp_path: Path) -> None:
    with RawServer() as server:
        pass
    with pytest.raises(SourceUnavailable, match="check the network, then run again"):
        len(opened(server, tmp_path))


def test_wrong_class_folder_says_which_dataset(server: RawServer, tmp_path: Path) -> None:
    with pytest.raises(RunFileError, match=r"folder set of owner/panels version 3 is no class"):
        len(opened(server, tmp_path, inside=""))


def test_kind_kaggle_opens_without_the_network(tmp_path: Path) -> None:
    source = KaggleSource(kind="kaggle", dataset="owner/panels", version=3)
    assert len(open_source(source, Context(tmp_path, CLASSES)).fingerprint()) == 64
