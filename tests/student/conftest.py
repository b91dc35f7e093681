"""The tiny student, built once for the tests of this room."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pocketvlm.run_file import Task
from pocketvlm.student.checkpoint import load_model
from pocketvlm.student.families import read_geometry
from pocketvlm.student.grammar import AllowedAnswers
from pocketvlm.student.processor_files import load_tokenizer
from pocketvlm.student.prompt import PromptEncoder
from pocketvlm.student.tasks import kind_of
from pocketvlm.student.tiny import build_tiny

CLASSES = ["zero", "one", "seven", "nine", "no", "none of these"]


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny(tmp_path_factory.mktemp("student") / "tiny", seed=0, longest_edge_px=32)


@pytest.fixture(scope="session")
def tokenizer(tiny: Path) -> Any:
    return load_tokenizer(tiny)


@pytest.fixture(scope="session")
def model(tiny: Path) -> Any:
    return load_model(tiny)


@pytest.fixture(scope="session")
def geometry(tiny: Path) -> Any:
    return read_geometry(tiny)


@pytest.fixture(scope="session")
def task() -> Task:
    return Task(question="Which digit is in this picture?\nDigit:", classes=dict.fromkeys(CLASSES, ""))


@pytest.fixture(scope="session")
def encoder(geometry: Any, tokenizer: Any, task: Task) -> PromptEncoder:
    return PromptEncoder(tokenizer, geometry, task)


@pytest.fixture(scope="session")
def allowed(tokenizer: Any, task: Task) -> AllowedAnswers:
    choice = kind_of(task).choice(" ")
    assert choice is not None
    return AllowedAnswers(choice.texts, tokenizer.get_vocab(), tokenizer.all_special_ids)
