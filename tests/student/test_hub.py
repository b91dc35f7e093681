"""The Hub, by a fake at the transport of its client: what is kept where, and who must act when it fails."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from huggingface_hub.errors import LocalEntryNotFoundError, OfflineModeIsEnabled
from huggingface_hub.utils import close_session, set_client_factory
from huggingface_hub.utils._http import default_client_factory
from safetensors.numpy import load_file, save_file

from pocketvlm.environment import Environment
from pocketvlm.errors import HubUnavailable, PocketVLMError, UserError
from pocketvlm.run_file import Recipe
from pocketvlm.student import base, hub

REVISION = "0123456789abcdef0123456789abcdef01234567"
RECIPE = Recipe.model_validate({
    "name": "hub", "student": {"model": "owner/model", "revision": REVISION},
    "task": {"question": "Which?", "classes": {"a": "", "b": ""}}, "labeller": {"source": {"kind": "digits"}},
    "trainer": {"phases": [{}]},
})  # fmt: skip
Handler = Callable[[httpx2.Request], httpx2.Response]


@pytest.fixture
def answer_with() -> Iterator[Callable[[Handler], None]]:
    """Puts a handler in the place of the network."""

    def install(handler: Handler) -> None:
        set_client_factory(lambda: httpx2.Client(transport=httpx2.MockTransport(handler)))
        close_session()

    yield install
    set_client_factory(default_client_factory)
    close_session()


@pytest.fixture
def environment(tmp_path: Path) -> Environment:
    return Environment(scratch=tmp_path / "scratch", cache=tmp_path / "cache")


class FakeHub:
    """Serves the files of one revision of one repository, and remembers what was asked for."""

    def __init__(self, files: dict[str, bytes]) -> None:
        self.files = files
        self.fetched: list[str] = []
        """Names of the files whose bytes, or a range of them, were sent."""

    def __call__(self, request: httpx2.Request) -> httpx2.Response:
        path = request.url.path
        if path == f"/api/models/owner/model/tree/{REVISION}":
            return httpx2.Response(200, json=[
                {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                for name, data in self.files.items()
            ])  # fmt: skip
        name = path.removeprefix(f"/owner/model/resolve/{REVISION}/")
        if name not in self.files:
            return httpx2.Response(404, headers={"X-Error-Code": "EntryNotFound"})
        data = self.files[name]
        headers = {"X-Repo-Commit": REVISION, "ETag": f'"{hashlib.sha1(data).hexdigest()}"', "Content-Length": str(len(data))}
        if request.method == "HEAD":
            return httpx2.Response(200, headers=headers)
        self.fetched.append(name)
        if "range" in request.headers:
            start, end = request.headers["range"].removeprefix("bytes=").split("-")
            return httpx2.Response(206, content=data[int(start) : int(end) + 1])
        return httpx2.Response(200, headers=headers, content=data)


def sharded(tiny: Path, tmp_path: Path) -> dict[str, bytes]:
    """The files of the tiny student, its weights in two shards, as large repositories have them."""
    files = {path.name: path.read_bytes() for path in tiny.iterdir()}
    del files["model.safetensors"]
    tensors = load_file_as_numbers(tiny / "model.safetensors")
    names = sorted(tensors)
    where = {name: f"model-{1 + (i % 2):05d}-of-00002.safetensors" for i, name in enumerate(names)}
    for shard in sorted(set(where.values())):
        save_file({name: tensors[name] for name in names if where[name] == shard}, tmp_path / shard)
        files[shard] = (tmp_path / shard).read_bytes()
    return {**files, hub.INDEX: json.dumps({"weight_map": where}).encode(), "pytorch_model.bin": b"a pickle"}


def load_file_as_numbers(path: Path) -> dict[str, Any]:
    """NumPy has no bf16, and only shapes matter here."""
    import torch
    from safetensors.torch import load_file as load

    return {name: tensor.to(torch.float16).numpy() for name, tensor in load(path).items()}


def test_a_snapshot_lies_in_our_cache_and_holds_no_pickles(
    tiny: Path, tmp_path: Path, environment: Environment, answer_with: Any
) -> None:
    answer_with(FakeHub(sharded(tiny, tmp_path)))
    folder = base.fetch_base(RECIPE, tmp_path, tmp_path / "scratch", environment)
    assert folder.is_relative_to(environment.cache / "hub")
    assert {"config.json", "tokenizer.json", "model-00001-of-00002.safetensors"} <= {path.name for path in folder.iterdir()}
    assert not (folder / "pytorch_model.bin").exists()
    assert len(load_file(folder / "model-00001-of-00002.safetensors")) > 1


def test_shapes_are_read_from_headers_of_weights_that_stay_where_they_are(
    tiny: Path, tmp_path: Path, environment: Environment, answer_with: Any
) -> None:
    fake = FakeHub(sharded(tiny, tmp_path))
    answer_with(fake)
    folder = base.fetch_base(RECIPE, tmp_path, tmp_path / "scratch", environment, weights=False)
    assert list(folder.glob("*.safetensors")) == []
    fake.fetched.clear()
    remote = base.read_shapes(RECIPE.student, folder, environment)
    assert fake.fetched == ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    assert remote == base.read_shapes(RECIPE.student.model_copy(update={"revision": None}), tiny, environment)


def test_shapes_of_shards_that_are_here_are_read_here(
    tiny: Path, tmp_path: Path, environment: Environment, answer_with: Any
) -> None:
    fake = FakeHub(sharded(tiny, tmp_path))
    answer_with(fake)
    folder = base.fetch_base(RECIPE, tmp_path, tmp_path / "scratch", environment)
    whole = base.read_shapes(RECIPE.student, folder, environment)
    (folder / "model-00002-of-00002.safetensors").unlink()  # as a download that was killed leaves it
    fake.fetched.clear()
    assert base.read_shapes(RECIPE.student, folder, environment) == whole
    assert fake.fetched == ["model-00002-of-00002.safetensors"]


def unreachable(request: httpx2.Request) -> httpx2.Response:
    raise httpx2.ConnectError("no route to host", request=request)


def status(code: int) -> Handler:
    return lambda request: httpx2.Response(code, request=request)


@pytest.mark.parametrize("handler", [unreachable, status(429), status(500), status(503)],
                         ids=["no connection", "429", "500", "503"])  # fmt: skip
def test_a_hub_that_cannot_answer_now_is_tried_again(
    handler: Handler, environment: Environment, answer_with: Any
) -> None:
    answer_with(handler)
    with pytest.raises(HubUnavailable, match=r"run\.student\.model: owner/model at 0123456789\w+ .*run again") as caught:
        hub.fetch_shapes(RECIPE.student, ["model.safetensors"], environment)
    assert caught.value.exit_code == 1


@pytest.mark.parametrize("code", [401, 403, 404])
@pytest.mark.parametrize("fetch", [
    lambda environment: hub.fetch_snapshot(RECIPE.student, ["*.json"], environment),
    lambda environment: hub.fetch_shapes(RECIPE.student, ["model.safetensors"], environment),
], ids=["snapshot", "shapes"])  # fmt: skip
def test_a_hub_that_refuses_is_for_a_person(
    code: int, fetch: Callable[[Environment], Any], environment: Environment, answer_with: Any
) -> None:
    answer_with(status(code))
    with pytest.raises(UserError, match=r"check the name, the revision and HF_TOKEN") as caught:
        fetch(environment)
    assert str(code) in str(caught.value) and caught.value.exit_code == 2


def raised(error: BaseException, cause: BaseException | None, environment: Environment) -> PocketVLMError:
    with pytest.raises(PocketVLMError) as caught, hub.hub_errors(RECIPE.student, environment):
        raise error from cause
    return caught.value


def test_not_in_the_cache_says_what_kept_the_client_from_the_hub(environment: Environment) -> None:
    missing = LocalEntryNotFoundError("cannot find the snapshot in the local cache")
    assert isinstance(raised(missing, httpx2.ConnectTimeout("timed out"), environment), HubUnavailable)
    assert isinstance(raised(missing, None, environment), HubUnavailable)
    offline = raised(missing, OfflineModeIsEnabled("offline"), environment)
    assert isinstance(offline, UserError) and "HF_HUB_OFFLINE" in str(offline)


def test_a_cache_that_cannot_be_written_names_its_variable(environment: Environment) -> None:
    error = raised(OSError(30, "Read-only file system"), None, environment)
    assert isinstance(error, UserError) and "POCKETVLM_CACHE" in str(error)
    assert isinstance(raised(OSError(28, "No space left on device"), None, environment), HubUnavailable)


def test_a_checkpoint_is_hashed_without_holding_it_in_memory(tmp_path: Path, environment: Environment) -> None:
    import tracemalloc

    size = 64_000_000
    (tmp_path / "model.safetensors").write_bytes(bytes(size))
    (tmp_path / "config.json").write_text("{}")
    student = RECIPE.student.model_copy(update={"model": str(tmp_path), "revision": None})
    tracemalloc.start()
    found = base.identity(student, tmp_path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found["files"]["model.safetensors"] == hashlib.sha256(bytes(size)).hexdigest()
    assert peak < size / 8
