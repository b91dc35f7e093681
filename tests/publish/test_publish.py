"""Publishing a release: whole, shown first, interrupted, done again, refused."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml
from finished import rows
from pydantic import SecretStr
from serve_uploads import Fault, Repository, UploadHub

from pocketvlm.artifacts.release import parse_release
from pocketvlm.errors import CredentialsError, DataError, HubUnavailable, UserError

MODEL, DATA = "models/us/digits", "datasets/us/digits-data"
ROOT = Path(__file__).parents[2]


def front_matter(card: str) -> dict[str, Any]:
    _, head, _ = card.split("---\n", 2)
    found: dict[str, Any] = yaml.safe_load(head)
    return found


def test_a_release_is_published_whole(release: Callable[..., Any], hub: UploadHub) -> None:
    desk = release()
    said = desk.publish()
    assert "the dataset goes with it" in said
    model, data = hub.content(MODEL), hub.content(DATA)
    assert {"text-q8_0.gguf", "mmproj-q8_0.gguf", "prompt.txt", "grammar.gbnf", "golden/golden.json", "release.json",
            "merged/model.safetensors", "README.md"} <= set(model)  # fmt: skip
    assert not {"report.html", "MODEL_CARD.md"} & set(model)
    published = parse_release(model["release.json"], "the Hub")
    assert {file.name: file.sha256 for file in published.files} == {
        file.name: hashlib.sha256(model[file.name]).hexdigest() for file in published.files
    }
    assert sum(name.endswith(".parquet") for name in data) == 3
    assert all(len(hub.repositories[name].messages) == 1 for name in (MODEL, DATA))


def test_a_published_release_is_not_published_again(release: Callable[..., Any], hub: UploadHub) -> None:
    desk = release()
    desk.publish()
    before = len(hub.writes)
    said = desk.publish()
    assert said.count("already there") == 2
    assert len(hub.writes) == before


def test_a_dry_run_says_everything_and_writes_nothing(release: Callable[..., Any], hub: UploadHub) -> None:
    said = release().publish(yes=False)
    assert hub.writes == []
    for part in ("model repository us/digits would be created, public", "dataset repository us/digits-data would be created",
                 "text-q8_0.gguf", "merged/model.safetensors", "train-00000-of-00001.parquet", "30 images under CC BY 2.0",
                 "license: unknown", "<__media__>Which digit", "dry run: nothing was sent"):  # fmt: skip
        assert part in said


def test_a_dry_run_of_a_published_release_shows_that_all_is_there(release: Callable[..., Any]) -> None:
    desk = release()
    desk.publish()
    said = desk.publish(yes=False)
    assert "  upload " not in said
    assert "  there " in said


def test_front_matter_of_the_card_is_yaml_with_the_measured_numbers(release: Callable[..., Any], hub: UploadHub) -> None:
    hub.licences["org/base"] = "apache-2.0"
    desk = release(recipe={"student": {"model": "org/base", "revision": "1" * 40}})
    desk.publish()
    head = front_matter(hub.content(MODEL)["README.md"].decode())
    assert (head["license"], head["base_model"], head["datasets"]) == ("apache-2.0", "org/base", ["us/digits-data"])
    assert head["pipeline_tag"] == "image-text-to-text"
    (result,) = head["model-index"][0]["results"]
    assert result["metrics"][0]["type"] == "accuracy"
    assert result["metrics"][0]["value"] == pytest.approx(11 / 12)
    head = front_matter(hub.content(DATA)["README.md"].decode())
    assert head["license"] == "cc-by-2.0"
    assert [file["split"] for file in head["configs"][0]["data_files"]] == ["train", "validation", "test"]


def test_the_card_names_prompt_grammar_authors_and_teacher(release: Callable[..., Any], hub: UploadHub) -> None:
    desk = release(rows=rows(labelled_by="teacher", teacher_model="gpt-4o"))
    desk.publish()
    card = hub.content(MODEL)["README.md"].decode()
    for part in ("<|im_start|>User:<__media__>Which digit", 'root ::= " zero"', "photographer 0; photographer 1", "CC BY 2.0",
                 "30 labels by a teacher model, gpt-4o", "llama.cpp `" + "0" * 40, "`canvas_px: 32`"):  # fmt: skip
        assert part in card


def test_what_the_teacher_was_asked_and_cost_stays_here(release: Callable[..., Any], hub: UploadHub, tmp_path: Path) -> None:
    changes = {"teacher_request_id": "chatcmpl-abcdefghijklmnop", "teacher_cost": 0.01, "source": "folder",
               "source_id": "private/holiday/1.jpg", "url": "https://user:word@files.example/1.jpg"}  # fmt: skip
    desk = release(rows=rows(**changes))
    assert "30 addresses" not in desk.publish()
    (tmp_path / "test.parquet").write_bytes(hub.content(DATA)["test-00000-of-00001.parquet"])
    table = pq.read_table(tmp_path / "test.parquet")
    assert not {"teacher_request_id", "teacher_cost"} & set(table.column_names)
    assert set(table["source_id"].to_pylist()) == set(table["url"].to_pylist()) == {None}
    features = json.loads(table.schema.metadata[b"huggingface"])["info"]["features"]
    assert set(features) == set(table.column_names)
    assert "30 addresses that are not public" in hub.content(DATA)["README.md"].decode()


def test_a_connection_that_breaks_in_an_upload_costs_one_more_try(release: Callable[..., Any], hub: UploadHub) -> None:
    hub.faults.append(Fault("cut", "/upload/"))
    release().publish()
    assert "text-q8_0.gguf" in hub.content(MODEL)
    assert set(hub.uploaded().values()) == {1}


def test_a_server_error_costs_one_more_try(release: Callable[..., Any], hub: UploadHub) -> None:
    hub.faults.append(Fault("503", "/upload/"))
    release().publish()
    assert set(hub.uploaded().values()) == {1}


def test_an_interrupted_upload_goes_on_and_sends_nothing_twice(release: Callable[..., Any], hub: UploadHub) -> None:
    desk = release(weight_bytes=1_100_000)
    # The right to write ends in the middle of the second large file.
    hub.part_bytes = 500_000
    hub.faults.append(Fault("403", "/2", after=1, times=1))
    with pytest.raises(CredentialsError, match="HF_TOKEN"):
        desk.publish(parts=["gguf"])
    assert hub.repositories[MODEL].messages == []
    first = dict(hub.uploaded())
    assert len(first) == 1
    desk.publish(parts=["gguf"])
    assert all(hub.uploaded()[sha256] == 1 for sha256 in first)
    assert len(hub.repositories[MODEL].messages) == 1


def test_a_commit_whose_answer_is_lost_is_found_done(release: Callable[..., Any], hub: UploadHub) -> None:
    desk = release()
    hub.faults.append(Fault("lost", f"/api/{MODEL}/commit", method="POST"))
    with pytest.raises(HubUnavailable, match="run the same command again"):
        desk.publish(parts=["gguf"])
    before = len(hub.writes)
    assert "already there" in desk.publish(parts=["gguf"])
    assert len(hub.writes) == before
    assert len(hub.repositories[MODEL].messages) == 1


CHILD = """
import sys
from pathlib import Path
from pydantic import SecretStr
from pocketvlm.artifacts.folder import FolderStore
from pocketvlm.environment import Environment
from pocketvlm.publish.publish import publish
folder, url, token = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
environment = Environment(store=str(folder / "store"), scratch=folder / "scratch", hub_token=SecretStr(token))
publish(FolderStore(folder / "store"), environment, "digits", "hub:us/digits", yes=True, endpoint=url)
"""


def test_a_killed_upload_goes_on_and_sends_nothing_twice(release: Callable[..., Any], hub: UploadHub) -> None:
    desk = release(weight_bytes=1_100_000)
    hub.part_bytes = 600_000
    hub.faults.append(Fault("stall", "/2", after=1))
    command = [sys.executable, "-c", CHILD, str(desk.folder), hub.url, hub.token]
    child = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
    try:
        assert hub.stalled.wait(60)
    finally:
        child.kill()
        child.wait()
    assert hub.repositories[MODEL].messages == []
    first = {sha256 for sha256, times in hub.uploaded().items() if times}
    assert first
    desk.publish()
    assert all(hub.uploaded()[sha256] == 1 for sha256 in first)
    assert set(hub.content(MODEL)) > {"text-q8_0.gguf", "mmproj-q8_0.gguf"}


def test_somebody_elses_commit_in_between_is_never_written_over(release: Callable[..., Any], hub: UploadHub) -> None:
    desk = release()
    hub.repositories[MODEL] = Repository(private=False)
    hub.faults.append(Fault("412", "/commit/main", method="POST"))
    with pytest.raises(HubUnavailable, match="somebody else"):
        desk.publish(parts=["gguf"])
    desk.publish(parts=["gguf"])


def test_files_of_others_stay_and_files_of_an_earlier_publishing_go(release: Callable[..., Any], hub: UploadHub) -> None:
    hub.repositories[MODEL] = Repository(private=False, files={"notes.txt": b"mine"})
    desk = release()
    desk.publish()
    assert "merged/config.json" in hub.content(MODEL)
    said = desk.publish(yes=False, parts=["gguf"])
    assert "remove                 merged/config.json" in said
    desk.publish(parts=["gguf"])
    names = set(hub.content(MODEL))
    assert "notes.txt" in names
    assert not any(name.startswith("merged/") for name in names)


@pytest.mark.parametrize(("status", "error"), [("401", CredentialsError), ("403", CredentialsError), ("404", UserError),
                                               ("409", HubUnavailable)])  # fmt: skip
def test_a_refusal_says_who_must_act(release: Callable[..., Any], hub: UploadHub, status: str, error: type[Exception]) -> None:
    hub.faults.append(Fault(status, "/preupload/", method="POST"))
    with pytest.raises(error):
        release().publish(parts=["gguf"])
    assert hub.repositories[MODEL].messages == []


def test_a_wrong_token_is_named(release: Callable[..., Any]) -> None:
    desk = release()
    desk.environment = desk.environment.model_copy(update={"hub_token": SecretStr("hf_another000000000000")})
    with pytest.raises(CredentialsError, match="HF_TOKEN"):
        desk.publish()


def test_without_a_token_nothing_is_begun(release: Callable[..., Any], hub: UploadHub) -> None:
    desk = release()
    desk.environment = desk.environment.model_copy(update={"hub_token": None})
    with pytest.raises(CredentialsError, match="HF_TOKEN: is not set"):
        desk.publish()
    assert hub.asked == []
    assert "would be created" in desk.publish(yes=False)


def test_private_makes_private_repositories_and_refuses_public_ones(release: Callable[..., Any], hub: UploadHub) -> None:
    desk = release()
    desk.publish(private=True)
    assert all(repository.private for repository in hub.repositories.values())
    hub.repositories[MODEL].private = False
    with pytest.raises(UserError, match="is there and public"):
        desk.publish(private=True)


@pytest.mark.parametrize(("licence", "says"), [
    (None, "no licence is stated"), ("all rights reserved", "not on the list"), ("CC BY-ND 2.0", "NoDerivatives"),
    ("Unsplash License (https://unsplash.com/license)", "not on the list"), ("CC BY-NC 4.0", "non-commercial purposes only"),
])  # fmt: skip
def test_one_image_whose_licence_forbids_it_keeps_the_dataset_here(
    release: Callable[..., Any], hub: UploadHub, licence: str | None, says: str
) -> None:
    data = rows()
    data["train"][3] = type(data["train"][3])(**{**vars(data["train"][3]), "licence": licence})
    said = release(rows=data).publish()
    assert "the dataset stays here" in said
    assert f"stops it: 1 images under {licence or 'no licence'} (" in said
    assert says in said
    assert DATA not in hub.repositories
    assert says in hub.content(MODEL)["README.md"].decode()
    assert "datasets" not in front_matter(hub.content(MODEL)["README.md"].decode())


def test_golden_images_that_may_not_be_passed_on_stay_here(release: Callable[..., Any], hub: UploadHub) -> None:
    data = rows()
    first = data["test"][0]
    data["test"][0] = type(first)(**{**vars(first), "licence": None})
    said = release(rows=data).publish()
    assert "1 golden images stay here" in said
    model = hub.content(MODEL)
    assert f"golden/{first.sha256[:16]}.png" not in model
    (kept,) = json.loads(model["golden/golden.json"])["images"]
    assert kept["file"] == f"{data['test'][1].sha256[:16]}.png"
    published = parse_release(model["release.json"], "the Hub")
    assert {file.name for file in published.files} <= set(model)


def test_the_dataset_alone_is_refused_if_its_licences_forbid_it(release: Callable[..., Any], hub: UploadHub) -> None:
    with pytest.raises(DataError, match="no licence is stated"):
        release(rows=rows(licence=None)).publish(parts=["dataset"])
    assert hub.writes == []


def test_non_commercial_images_go_with_a_word_of_the_publisher(release: Callable[..., Any], hub: UploadHub) -> None:
    desk = release(rows=rows(licence="CC BY-NC-SA 4.0"))
    desk.publish(non_commercial=True)
    card = hub.content(DATA)["README.md"].decode()
    assert front_matter(card)["license"] == "cc-by-nc-sa-4.0"
    assert "non-commercial purposes only" in card
    assert "ShareAlike" in card


def test_a_run_that_has_made_other_files_since_is_not_taken_for_the_release(release: Callable[..., Any]) -> None:
    desk = release(version="1")
    other = release(version="2", gguf_keys={"general.architecture": "llama", "general.name": "other"}).publish(yes=False)
    assert "release digits 2" in other
    with pytest.raises(UserError, match="has made other files since"):
        desk.publish(yes=False, version="1")


@pytest.mark.parametrize(("options", "says"), [({"parts": ["onnx"]}, "onnx is no part"), ({"version": "9"}, "has no version 9")])
def test_a_wrong_word_is_named(release: Callable[..., Any], options: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        release().publish(**options)
