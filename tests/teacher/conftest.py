"""The fake teacher, and pictures that it knows the class of."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from fake_teacher import FakeTeacher


@pytest.fixture
def fake_teacher() -> Iterator[FakeTeacher]:
    with FakeTeacher() as teacher:
        yield teacher
