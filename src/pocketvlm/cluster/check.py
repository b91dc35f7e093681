"""Whether a conductor could do its work here: `helm test` asks this before anybody waits for a run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from pocketvlm.cluster.api import Api, connect
from pocketvlm.cluster.plan import ConductorPlan, SetUpWrong, read_plan

Right = tuple[str, str, str, str, str]
"""Verb, API group, resource, subresource, name."""


def rights(plan: ConductorPlan) -> Iterator[Right]:
    """All that a conductor may need; the Role of the chart gives no more."""
    yield "list", "batch", "jobs", "", ""
    yield "watch", "batch", "jobs", "", ""
    for stage in plan.stages:
        yield "patch", "batch", "jobs", "", stage.job
    yield "list", "", "pods", "", ""
    yield "get", "", "pods", "log", ""
    yield "create", "", "events", "", ""
    yield "list", "", "events", "", ""


def check(path: Path) -> str:
    """Reads the plan and asks for each right. Returns what to print; raises SetUpWrong naming what is missing."""
    plan = read_plan(path)
    return check_rights(plan, Api(plan, connect()))


def check_rights(plan: ConductorPlan, api: Api) -> str:
    """As `check`, of a plan that has been read."""
    asked = list(rights(plan))
    missing = [_written(right) for right in asked if not api.may(*right)]
    if missing:
        raise SetUpWrong(f"the conductor's Role in namespace {plan.namespace} lacks: {', '.join(missing)}")
    return f"release {plan.release}: {len(plan.stages)} stages; all {len(asked)} rights are there"


def _written(right: Right) -> str:
    verb, _, resource, subresource, name = right
    return f"{verb} {resource}{f'/{subresource}' if subresource else ''}{f' {name}' if name else ''}"
