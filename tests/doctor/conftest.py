"""One tiny student, converted once for all tests of the doctor."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path[:0] = [str(Path(__file__).parent)]
from models import Models, make_models  # noqa: E402


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory, built: None) -> Models:
    return make_models(tmp_path_factory.mktemp("doctor"))
