"""What each image installs is a part of requirements.lock: same versions, same hashes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = sorted(ROOT.glob("images/*/requirements.txt"))


def pins(path: Path) -> dict[str, frozenset[str]]:
    """`name==version` -> its hashes."""
    found: dict[str, frozenset[str]] = {}
    for block in re.split(r"\n(?=\S)", path.read_text().replace("\\\n", " ")):
        if block.strip():
            found[re.split(r"[ ;]", block)[0]] = frozenset(re.findall(r"--hash=(sha256:[0-9a-f]{64})", block))
    return found


def names(image: str) -> set[str]:
    return {pin.split("==")[0] for pin in pins(ROOT / "images" / image / "requirements.txt")}


def in_image(path: Path) -> str:
    return path.parent.name


@pytest.mark.parametrize("path", FILES, ids=in_image)
def test_every_version_and_hash_is_that_of_the_lock(path: Path) -> None:
    lock = pins(ROOT / "requirements.lock")
    wrong = {pin: "run `make lock`" for pin, hashes in pins(path).items() if not hashes or lock.get(pin) != hashes}
    assert wrong == {}


@pytest.mark.parametrize("path", FILES, ids=in_image)
def test_a_list_names_no_place_to_load_from(path: Path) -> None:
    assert not re.search(r"https?:|index-url|find-links| @ |file:", path.read_text())


def test_the_conductor_has_kubernetes_and_neither_torch_nor_a_store() -> None:
    assert "kubernetes" in names("conductor")
    assert names("conductor") & {"torch", "boto3", "botocore", "numpy", "pyarrow", "transformers", "pillow"} == set()


def test_only_the_torch_layer_has_torch() -> None:
    assert [path.parent.name for path in FILES if "torch" in names(path.parent.name)] == ["torch"]
    assert {"transformers", "accelerate", "peft", "sentencepiece", "boto3", "pyarrow"} <= names("torch")


def test_the_labeller_reads_digits_without_a_network() -> None:
    assert {"scikit-learn", "boto3", "pyarrow", "pillow"} <= names("labeller")


def test_only_the_trainer_has_tensorboard() -> None:
    assert [path.parent.name for path in FILES if "tensorboard" in names(path.parent.name)] == ["trainer"]


@pytest.mark.parametrize("path", sorted(ROOT.glob("images/*/requirements.in")), ids=in_image)
def test_what_an_image_asks_for_by_name_is_in_its_list(path: Path) -> None:
    assert set(path.read_text().split()) <= names(path.parent.name)
