"""The benchmark of `predict` itself: both sides answer alike."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from ..conftest import ROOT, Place

pytestmark = [pytest.mark.llamacpp, pytest.mark.chain]


def test_a_loop_of_llama_mtmd_cli_and_predict_give_equal_answers(digits: Place, tmp_path: Path) -> None:
    assert digits.pocketvlm("pull", "digits", "--types", "q8_0", "--to", str(tmp_path / "pulled")).returncode == 0
    command = [sys.executable, "-m", "bench.predict", "--release", str(tmp_path / "pulled"), "--images", "12", "--loop", "4",
               "--out", str(tmp_path / "results")]  # fmt: skip
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:] + done.stdout
    (path,) = (tmp_path / "results").glob("*-predict.json")
    result = json.loads(path.read_text())
    assert (result["compared"], result["differing"]) == (4, 0)
    assert [side["images"] for side in result["sides"]] == [4, 12]
    assert "4 of 4 answers equal" in done.stdout
