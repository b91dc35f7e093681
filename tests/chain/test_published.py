"""A real release of the small run goes to the Hub and comes back sound; two real runs are compared."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest
from pydantic import SecretStr
from runs import SMALL

from pocketvlm.artifacts.run_record import run_id
from pocketvlm.compare.page import write_comparison
from pocketvlm.environment import Environment, read_environment
from pocketvlm.llamacpp.toolchain import find_toolchain
from pocketvlm.publish.publish import publish
from pocketvlm.run_file import read_run_file
from pocketvlm.verify import verify

from ..conftest import Place, place

sys.path.insert(0, str(Path(__file__).parents[1] / "publish"))
from serve_uploads import serving

pytestmark = [pytest.mark.llamacpp, pytest.mark.chain]


def test_a_published_release_answers_as_it_was_measured(small: Place, tmp_path: Path) -> None:
    with serving() as hub:
        environment = Environment(store=str(small.folder / "store"), scratch=tmp_path, hub_token=SecretStr(hub.token))
        said = publish(small.store, environment, "digits", "hub:us/digits", licence="apache-2.0", yes=True, endpoint=hub.url)
        content = hub.content("models/us/digits")
        data = hub.content("datasets/us/digits-data")
    assert "160 images under CC BY 4.0" in said
    assert sum(name.endswith(".parquet") for name in data) == 3
    for name, kept in content.items():
        (tmp_path / "back" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "back" / name).write_bytes(kept)
    result = verify(tmp_path / "back", find_toolchain(read_environment()), threads=1)
    assert (result.types, result.images) == (["q8_0"], 2)


def test_two_real_runs_with_one_model_part_nowhere(small: Place, tmp_path: Path) -> None:
    shutil.copytree(small.folder / "store", tmp_path / "store")
    other = place(tmp_path, SMALL, {"evaluator": {"answer_threshold": 0.6}})
    done = other.pocketvlm("run", str(other.run_file))
    assert done.returncode == 0, done.stderr[-2000:]
    named = [run_id(read_run_file(path).run) for path in (small.run_file, other.run_file)]
    page, summary = write_comparison(named, Environment(store=str(tmp_path / "store")), tmp_path / "page.html")
    assert "B against A on 30 common images: 0.0 points" in summary
    assert summary.endswith("settings that differ: evaluator.answer_threshold")
    assert "All runs use one dataset" in page.read_text(encoding="utf-8")
