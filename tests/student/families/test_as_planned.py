"""What `plan` says of base checkpoints: those of a canvas family, and those that are not whole."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from canvas_students import Student
from runs import job
from safetensors.torch import load_file, save_file

from pocketvlm.artifacts.folder import FolderStore
from pocketvlm.artifacts.run_record import write_recipe
from pocketvlm.environment import Environment
from pocketvlm.errors import RunFileError, UserError
from pocketvlm.plan import check, plan
from pocketvlm.run_file import RunFile, check_run_file, read_run_file

qwen = pytest.mark.parametrize("student", ["Qwen2-VL"], indirect=True)


@pytest.fixture
def environment(tmp_path: Path) -> Environment:
    return Environment(store=str(tmp_path / "store"), scratch=tmp_path / "scratch")


def digits(model: Path, **device: Any) -> RunFile:
    content = job("digits", {"student": {"model": str(model)}})
    content["run"]["device"] = device
    return check_run_file(content, model.parent / "run.yaml")


@qwen
def test_the_record_of_a_run_is_a_run_file_for_plan_too(student: Student, environment: Environment, tmp_path: Path) -> None:
    run_file, store = digits(student.folder, canvas_px=112), FolderStore(tmp_path / "store")
    run = write_recipe(store, run_file.run)
    (tmp_path / "again.yaml").write_bytes(store.read(f"runs/{run}/run.yaml"))
    again = plan(read_run_file(tmp_path / "again.yaml"), environment)
    assert again == plan(run_file, environment) and again.startswith(f"run {run} ")


@qwen
def test_a_tile_budget_that_a_canvas_family_would_ignore_is_refused_from_the_record_too(
    student: Student, environment: Environment, tmp_path: Path
) -> None:
    """512 is the default, and was asked for all the same."""
    run_file, store = digits(student.folder, canvas_px=112, longest_edge_px=512), FolderStore(tmp_path / "store")
    (tmp_path / "again.yaml").write_bytes(store.read(f"runs/{write_recipe(store, run_file.run)}/run.yaml"))
    for asked in (run_file, read_run_file(tmp_path / "again.yaml")):
        with pytest.raises(RunFileError, match=r"run\.device\.longest_edge_px: Qwen2-VL has no tile budget"):
            check(asked, environment)


@qwen
def test_a_prompt_that_is_too_long_names_the_key_that_this_family_has(student: Student, environment: Environment) -> None:
    run_file = digits(student.folder, canvas_px=1792)
    with pytest.raises(RunFileError, match=r"run\.device\.canvas_px: prompt and answer take \d+ tokens"):
        check(run_file, environment)


def test_a_checkpoint_that_is_not_whole_or_of_another_model_is_refused(
    tiny: Path, environment: Environment, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(tiny, tmp_path / "model"))
    weights, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    run_file = digits(folder, canvas_px=32, longest_edge_px=32, max_new_tokens=8)
    check(run_file, environment)
    tensors = load_file(weights)
    save_file({**tensors, "model.layers.0.mlp.up_proj.weight": tensors["lm_head.weight"].clone()}, weights)
    with pytest.raises(UserError, match=r"run\.student\.model: model has a tensor model\.layers\.0\.mlp\.up_proj\.weight"):
        check(run_file, environment)
    shutil.copy(tiny / weights.name, weights)
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"model\.safetensors: ends before its last tensor does; fetch or save it again"):
        check(run_file, environment)
    shutil.copy(tiny / weights.name, weights)
    weights.rename(folder / "model-00001-of-00002.safetensors")
    index.write_text(json.dumps({"weight_map": {name: f"model-0000{name}-of-00002.safetensors" for name in "12"}}))
    with pytest.raises(UserError, match=r"run\.student\.model: .*index\.json names model-00002-of-00002\.safetensors"):
        check(run_file, environment)
