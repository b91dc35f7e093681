"""The plan: what the chart writes is read, and nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from shapes import STAGES, plan_json

from pocketvlm.cluster.plan import SetUpWrong, read_plan


def write(folder: Path, content: Any) -> Path:
    path = folder / "conductor.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_a_plan_is_what_the_chart_writes(tmp_path: Path) -> None:
    plan = read_plan(write(tmp_path, plan_json()))
    assert [stage.name for stage in plan.stages] == list(STAGES)
    assert plan.stages[1].job == "digits-trainer" and plan.stages[1].startup_timeout_s == 600


FAULTS = {
    "stages.0.startup_timeout": lambda plan: plan["stages"][0].update(startup_timeout=1),
    "stages.1.job": lambda plan: plan["stages"][1].pop("job"),
    "stages.2.unschedulable_timeout_s": lambda plan: plan["stages"][2].update(unschedulable_timeout_s=0),
    "metrics.port": lambda plan: plan["metrics"].update(port="many"),
    "stages": lambda plan: plan.update(stages=[]),
    "the stage trainer is there twice": lambda plan: plan["stages"][0].update(name="trainer"),
    "the Job digits-trainer is there twice": lambda plan: plan["stages"][0].update(job="digits-trainer"),
}


@pytest.mark.parametrize("named", FAULTS)
def test_a_fault_in_a_plan_is_named_by_its_key(named: str, tmp_path: Path) -> None:
    content = plan_json()
    FAULTS[named](content)
    with pytest.raises(SetUpWrong) as fault:
        read_plan(write(tmp_path, content))
    assert named in str(fault.value) and fault.value.exit_code == 11
    assert "is the image of the conductor of the same version as the chart?" in str(fault.value)


def test_a_file_that_is_no_json_or_not_there_is_named(tmp_path: Path) -> None:
    for path in (write(tmp_path, "release: digits"), tmp_path / "absent.json"):
        with pytest.raises(SetUpWrong, match=path.name):
            read_plan(path)
