"""docs/conductor.md says what is so."""

from __future__ import annotations

import re
from pathlib import Path

from prometheus_client import CollectorRegistry
from shapes import release_plan

from pocketvlm.cluster.check import rights
from pocketvlm.cluster.conductor import STOPPED
from pocketvlm.cluster.faults import StageFailed
from pocketvlm.cluster.machine import STATES
from pocketvlm.cluster.metrics import RunMetrics
from pocketvlm.cluster.plan import SetUpWrong

PAGE = (Path(__file__).parents[2] / "docs" / "conductor.md").read_text()


def rows(heading: str) -> list[list[str]]:
    section = PAGE.split(f"## {heading}\n")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("| ")][2:]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]


def test_every_state_is_explained() -> None:
    assert sorted(row[0] for row in rows("States")) == sorted(STATES)


def test_the_exit_codes_are_those_of_the_errors() -> None:
    codes = [0, StageFailed.exit_code, SetUpWrong.exit_code, STOPPED, "other"]
    assert [row[0] for row in rows("Exit codes")] == [str(code) for code in codes]


def test_the_rights_are_those_that_are_asked_for() -> None:
    told = {(verb, row[1].split(",")[0]) for row in rows("Rights") for verb in row[0].split(", ")}
    asked = {(verb, f"{what}/{part}" if part else what) for verb, _, what, part, _ in rights(release_plan())}
    assert told == asked


def test_the_metrics_are_those_that_are_served() -> None:
    registry = CollectorRegistry()
    registry.register(RunMetrics(release_plan()))
    served = {metric.name for metric in registry.collect()}
    assert {re.findall(r"\w+", row[0])[0] for row in rows("Metrics")} == served
