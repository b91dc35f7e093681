"""The demo's promises, measured on its own release: accuracy, agreement, parity, the blind control, pull and verify."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from pathlib import Path

import pytest

from ..conftest import Place, place

pytestmark = [pytest.mark.chain, pytest.mark.timeout(1500)]


def test_q8_0_pair_answers_at_least_95_of_100_held_out_digits(digits: Place) -> None:
    metrics = digits.metrics()["types"]["q8_0"]
    assert metrics["images"] == 359
    assert metrics["accuracy"] >= 0.95


def test_q8_0_pair_agrees_with_transformers(digits: Place) -> None:
    assert digits.metrics()["types"]["q8_0"]["agreement"] >= 0.99


def test_bf16_pair_is_within_a_hundredth_of_a_nat_of_transformers(digits: Place) -> None:
    assert digits.metrics()["parity"]["max_nats"] <= 0.01


def test_grey_images_are_answered_no_better_than_by_guessing(digits: Place) -> None:
    metrics = digits.metrics()
    assert metrics["blind"]["accuracy"] <= 0.25
    assert metrics["blind"]["accuracy"] + 0.5 < metrics["types"]["q8_0"]["accuracy"]


def test_the_untrained_base_is_far_worse(digits: Place) -> None:
    assert digits.metrics()["base"]["accuracy"] <= 0.3


def test_a_rerun_does_no_work_and_says_so_stage_by_stage(digits: Place) -> None:
    before = {stored.key: digits.store.read(stored.key) for stored in digits.store.list("")}
    clock = time.monotonic()
    done = digits.pocketvlm("run", str(digits.run_file))
    assert time.monotonic() - clock < 60  # the training alone takes minutes
    assert done.returncode == 0
    assert done.stderr.count("already done: ") == 5
    assert {stored.key: digits.store.read(stored.key) for stored in digits.store.list("")} == before


def test_the_release_pulls_verifies_and_is_what_was_measured(digits: Place, tmp_path: Path) -> None:
    pulled = digits.pocketvlm("pull", "digits", "--to", str(tmp_path / "models"))
    assert pulled.returncode == 0, pulled.stderr
    release = json.loads((tmp_path / "models" / "release.json").read_text())
    measured = {entry.sha256 for entry in digits.artifact("quantiser").files}
    for file in release["files"]:
        digest = hashlib.sha256((tmp_path / "models" / file["name"]).read_bytes()).hexdigest()
        assert digest == file["sha256"]
        if file["role"] in ("text_model", "mmproj"):
            assert digest in measured
    verified = digits.pocketvlm("verify", str(tmp_path / "models"))
    assert verified.returncode == 0, verified.stderr


def test_verify_refuses_a_pair_whose_mmproj_was_exchanged(digits: Place, tmp_path: Path) -> None:
    assert digits.pocketvlm("pull", "digits", "--to", str(tmp_path / "models")).returncode == 0
    mmproj = next((tmp_path / "models").glob("mmproj*"))
    data = bytearray(mmproj.read_bytes())
    data[-1] ^= 1
    mmproj.write_bytes(data)
    verified = digits.pocketvlm("verify", str(tmp_path / "models"))
    assert verified.returncode != 0
    assert mmproj.name in verified.stderr


@pytest.mark.parametrize("fault", ["answer", "confidence"])
def test_verify_refuses_a_release_that_answers_otherwise_than_measured(digits: Place, tmp_path: Path, fault: str) -> None:
    """Every sha256 is right here: what was written down as measured is not what the pair answers."""
    models = tmp_path / "models"
    assert digits.pocketvlm("pull", "digits", "--to", str(models), "--types", "q8_0").returncode == 0
    golden, release = json.loads((models / "golden/golden.json").read_text()), json.loads((models / "release.json").read_text())
    expected = golden["images"][0]["types"]["q8_0"]
    other = next(name for name in release["classes"] if name != expected["answer"])
    expected[fault] = other if fault == "answer" else expected["confidence"] - 0.1
    (models / "golden/golden.json").write_text(json.dumps(golden))
    (entry,) = [file for file in release["files"] if file["name"] == "golden/golden.json"]
    entry |= {"sha256": hashlib.sha256((models / "golden/golden.json").read_bytes()).hexdigest(),
              "size": (models / "golden/golden.json").stat().st_size}  # fmt: skip
    (models / "release.json").write_text(json.dumps(release))
    done = digits.pocketvlm("verify", str(models))
    assert done.returncode == 4
    assert "does not answer as it was measured" in done.stderr
    assert f"golden/{golden['images'][0]['file']}" in done.stderr


def test_nothing_published_knows_where_it_was_made(digits: Place) -> None:
    for stored in digits.store.list(""):
        if not stored.key.startswith("runs/"):
            assert str(digits.folder).encode() not in digits.store.read(stored.key), stored.key


def test_a_gate_refuses_the_model_names_the_numbers_and_leaves_latest_alone(digits: Place, tmp_path: Path) -> None:
    strict = place(tmp_path / "strict", {"evaluator": {"gates": {"min_accuracy": 1.0}}})
    shutil.copytree(digits.folder / "store", tmp_path / "strict" / "store")
    latest = digits.store.read("releases/digits/latest.json")
    done = strict.pocketvlm("run", str(strict.run_file))
    assert done.returncode == 4
    assert "min_accuracy" in done.stderr
    assert "1.0" in done.stderr or "1.000" in done.stderr
    assert strict.store.read("releases/digits/latest.json") == latest
    report = done.stderr.partition("report: ")[2].splitlines()[0]
    assert "min_accuracy" in (strict.folder / report).read_text()
