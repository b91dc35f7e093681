"""The Hub, by a fake at the transport of its client: what is kept where, and who must act when it fails."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import pytest
from huggingface_hub.errors import LocalEntryNotFoundError, OfflineModeIsEnabled
from huggingface_hub.utils import close_session, set_client_factory
from huggingface_hub.utils._http import default_client_factory
from pydantic import SecretStr
from safetensors.numpy import save_file

from pocketvlm.artifacts.artifact import find, publish
from pocketvlm.artifacts.store import Store
from pocketvlm.environment import Environment
from pocketvlm.errors import HubUnavailable, PocketVLMError, UserError
from pocketvlm.run_file import Recipe, Student
from pocketvlm.safetensors_header import read_file
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


def pod(tmp_path: Path, name: str, **changes: Any) -> Environment:
    """An environment with a cache of its own."""
    return Environment(scratch=tmp_path / name / "scratch", cache=tmp_path / name / "cache", **changes)


def fetch(environment: Environment, store: Store, recipe: Recipe = RECIPE, **options: Any) -> Path:
    return base.fetch_base(recipe, environment.cache.parent, environment.scratch, environment, store, **options)


def facts(environment: Environment, store: Store, folder: Path, student: Student = RECIPE.student) -> base.BaseFacts:
    return base.read_facts(student, environment.cache.parent, folder, environment, store)


def test_a_checkpoint_of_the_hub_is_fetched_once_for_every_stage_run_and_pod(
    tiny: Path, tmp_path: Path, folder_store: Store, answer_with: Any
) -> None:
    answer_with(fake := FakeHub(sharded(tiny, tmp_path)))
    first = fetch(pod(tmp_path, "a"), folder_store)
    weights = [name for name in fake.fetched if name.endswith(".safetensors")]
    assert sorted(weights) == ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    assert not any(name.endswith(".bin") for name in fake.fetched)
    answer_with(unreachable)
    second = fetch(pod(tmp_path, "b"), folder_store)
    assert {path.name: path.read_bytes() for path in second.iterdir()} == {
        path.name: path.read_bytes() for path in first.iterdir()
    }
    here = pod(tmp_path, "c")
    planned = fetch(here, folder_store, weights=False)
    assert list(planned.glob("*.safetensors")) == []
    told = facts(here, folder_store, planned)
    assert told.shapes == {name: entry.shape for name, entry in read_file(tiny / "model.safetensors").entries.items()}
    assert "owner/model, in the store" in told.line


def test_what_is_in_the_store_is_an_artifact_like_any_other_and_changes_no_id(
    tiny: Path, tmp_path: Path, folder_store: Store, answer_with: Any
) -> None:
    answer_with(FakeHub(sharded(tiny, tmp_path)))
    before = base.identity(RECIPE.student, tmp_path)
    fetch(pod(tmp_path, "a"), folder_store)
    (manifest,) = [stored.key for stored in folder_store.list("models/") if stored.key.endswith("manifest.json")]
    artifact = find(folder_store, "models", manifest.split("/")[1])
    assert artifact is not None and artifact.manifest.settings == {"hub": "owner/model", "revision": REVISION}
    assert not any(file.name.endswith(".bin") for file in artifact.files)
    assert base.identity(RECIPE.student, tmp_path) == before == {"model": "owner/model", "revision": REVISION}


def test_two_pods_that_fetch_at_once_publish_one_artifact(
    tiny: Path, tmp_path: Path, folder_store: Store, answer_with: Any
) -> None:
    answer_with(FakeHub(sharded(tiny, tmp_path)))
    with ThreadPoolExecutor(2) as pool:
        folders = list(pool.map(lambda name: fetch(pod(tmp_path, name), folder_store), ["a", "b"]))
    assert all((folder / "model-00001-of-00002.safetensors").is_file() for folder in folders)
    assert sum(stored.key.endswith("manifest.json") for stored in folder_store.list("models/")) == 1


def test_a_plan_reads_headers_of_weights_that_stay_where_they_are_and_leaves_the_store_as_it_is(
    tiny: Path, tmp_path: Path, folder_store: Store, answer_with: Any
) -> None:
    answer_with(fake := FakeHub(sharded(tiny, tmp_path)))
    here = pod(tmp_path, "a")
    folder = fetch(here, folder_store, weights=False)
    assert folder.is_relative_to(here.cache / "hub") and list(folder.glob("*.safetensors")) == []
    fake.fetched.clear()
    told = facts(here, folder_store, folder)
    assert fake.fetched == ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    assert told.shapes == {name: entry.shape for name, entry in read_file(tiny / "model.safetensors").entries.items()}
    assert told.weights_bytes == sum(entry.size for entry in read_file(tiny / "model.safetensors").entries.values())
    assert list(folder_store.list("models/")) == []


def test_shapes_of_shards_that_are_here_are_read_here(
    tiny: Path, tmp_path: Path, environment: Environment, folder_store: Store, answer_with: Any
) -> None:
    answer_with(fake := FakeHub(sharded(tiny, tmp_path)))
    folder = hub.fetch_snapshot(RECIPE.student, base.CHECKPOINT_FILES, environment)
    whole = facts(environment, folder_store, folder)
    (folder / "model-00002-of-00002.safetensors").unlink()  # as a download that was killed leaves it
    fake.fetched.clear()
    assert facts(environment, folder_store, folder) == whole
    assert fake.fetched == ["model-00002-of-00002.safetensors"]


@pytest.mark.parametrize(("card", "licence"), [
    ("---\nlicense: apache-2.0\ntags: [a]\n---\n# Model", "apache-2.0"),
    ("---\nlicense: other\nlicense_name: gemma\n---\n", "gemma"),
    ("---\nlicense:\n- mit\n- cc-by-4.0\ntags:\n- a\n---\n", "mit, cc-by-4.0"),
    ("# license: mit\n", "not stated"), (None, "not stated"),
])  # fmt: skip
def test_the_licence_is_told_before_and_after_and_of_what_was_made_of_it(
    tiny: Path, tmp_path: Path, folder_store: Store, answer_with: Any, card: str | None, licence: str
) -> None:
    answer_with(FakeHub({**sharded(tiny, tmp_path), **({"README.md": card.encode()} if card else {})}))
    here = pod(tmp_path, "a")
    assert facts(here, folder_store, fetch(here, folder_store, weights=False)).licence == licence
    fetch(here, folder_store)
    told = facts(here, folder_store, fetch(here, folder_store, weights=False))
    assert told.licence == licence and told.line.endswith(f"licence: {licence}")
    settings = {"student": base.identity(RECIPE.student, tmp_path)}
    publish(folder_store, "models", "0123456789abcdef", tiny, inputs={}, settings=settings, facts={})
    merged = Student(model="models/0123456789abcdef")
    assert facts(here, folder_store, tiny, merged).licence == licence


def test_a_finished_model_of_the_store_is_a_base(tiny: Path, tmp_path: Path, folder_store: Store) -> None:
    publish(folder_store, "models", "0123456789abcdef", tiny, inputs={}, settings={}, facts={})
    student = Student(model="models/0123456789abcdef")
    recipe = RECIPE.model_copy(update={"student": student})
    assert base.identity(student, tmp_path) == {"model": "models/0123456789abcdef"}
    here = pod(tmp_path, "a")
    planned = fetch(here, folder_store, recipe, weights=False)
    assert list(planned.glob("*.safetensors")) == []
    told = facts(here, folder_store, planned, student)
    assert told.shapes == {name: entry.shape for name, entry in read_file(tiny / "model.safetensors").entries.items()}
    folder = fetch(here, folder_store, recipe)
    assert (folder / "model.safetensors").read_bytes() == (tiny / "model.safetensors").read_bytes()
    assert base.display_name(student, tmp_path) == "models/0123456789abcdef"


def test_a_model_that_the_store_does_not_have_is_for_a_person(tmp_path: Path, folder_store: Store) -> None:
    recipe = RECIPE.model_copy(update={"student": Student(model="models/0123456789abcdef")})
    with pytest.raises(UserError, match=r"run\.student\.model: .* has no models/0123456789abcdef"):
        fetch(pod(tmp_path, "a"), folder_store, recipe)
    with pytest.raises(ValueError, match="revision"):
        Student(model="models/0123456789abcdef", revision=REVISION)


@pytest.mark.parametrize("weights", [True, False], ids=["a stage", "a plan"])
def test_pickles_are_refused_and_never_fetched(
    tiny: Path, tmp_path: Path, folder_store: Store, answer_with: Any, weights: bool
) -> None:
    files = {path.name: path.read_bytes() for path in tiny.iterdir() if path.suffix != ".safetensors"}
    answer_with(fake := FakeHub({**files, "pytorch_model.bin": b"a pickle"}))
    here = pod(tmp_path, "a")
    with pytest.raises(UserError, match="pickles are never opened"):
        facts(here, folder_store, fetch(here, folder_store, weights=weights))
    assert "pytorch_model.bin" not in fake.fetched and list(folder_store.list("models/")) == []


def test_a_checkpoint_that_wants_its_own_code_is_refused_before_its_weights_are_fetched(
    tiny: Path, tmp_path: Path, folder_store: Store, answer_with: Any
) -> None:
    files = sharded(tiny, tmp_path)
    config = json.loads(files["config.json"]) | {"auto_map": {"AutoModel": "modeling.Mine"}}
    answer_with(fake := FakeHub({**files, "config.json": json.dumps(config).encode(), "modeling.py": b"boom()"}))
    with pytest.raises(UserError, match="auto_map"):
        fetch(pod(tmp_path, "a"), folder_store)
    assert not any(name.endswith((".safetensors", ".py")) for name in fake.fetched)
    assert list(folder_store.list("models/")) == []


def test_the_token_is_a_secret_that_every_request_carries(
    tiny: Path, tmp_path: Path, folder_store: Store, answer_with: Any
) -> None:
    fake = FakeHub(sharded(tiny, tmp_path))

    def gated(request: httpx2.Request) -> httpx2.Response:
        right = request.headers.get("authorization") == "Bearer hf_secret"
        return fake(request) if right else httpx2.Response(401, headers={"X-Error-Code": "GatedRepo"}, request=request)

    answer_with(gated)
    with pytest.raises(UserError, match="HF_TOKEN"):
        fetch(pod(tmp_path, "a"), folder_store)
    fetch(pod(tmp_path, "b", hub_token=SecretStr("hf_secret")), folder_store)
    assert not any(b"hf_secret" in folder_store.read(stored.key) for stored in folder_store.list(""))


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
        hub.fetch_entries(RECIPE.student, ["model.safetensors"], environment)
    assert caught.value.exit_code == 1


@pytest.mark.parametrize("code", [401, 403, 404])
@pytest.mark.parametrize("fetch", [
    lambda environment: hub.fetch_snapshot(RECIPE.student, ["*.json"], environment),
    lambda environment: hub.fetch_entries(RECIPE.student, ["model.safetensors"], environment),
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
