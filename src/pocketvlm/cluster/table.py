"""The log of the conductor: one line for each event, and the table of stages at each change."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime

from pocketvlm.cluster.machine import StageView
from pocketvlm.cluster.objects import Pod
from pocketvlm.cluster.trouble import Trouble
from pocketvlm.cluster.words import Commands, exit_meaning, last_line
from pocketvlm.progress import duration

HEADER = ("stage", "state", "for", "attempts", "")


def table(stages: tuple[StageView, ...], now: float) -> list[str]:
    """A header with the time, and one line for each stage."""
    rows = [HEADER, *((view.name, view.state, _lasted(view, now), str(view.attempts or ""), view.note) for view in stages)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADER) - 1)]
    lines = [
        "  ".join([f"{cell:<{width}}" for cell, width in zip(row, widths, strict=False)] + [row[-1]]).rstrip() for row in rows
    ]
    return [f"{lines[0]}  {clock(now)}", *lines[1:]]


def clock(now: float) -> str:
    """`2026-11-21 10:02:11 UTC`."""
    return datetime.fromtimestamp(now, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def _lasted(view: StageView, now: float) -> str:
    if view.started is None:
        return ""
    return duration(max(0.0, (view.ended or now) - view.started))


def changes(before: Mapping[str, StageView], after: tuple[StageView, ...], commands: Commands) -> Iterator[str]:
    """One line for each stage whose state is another. Failures and attempts that ended have lines of their own."""
    for view in after:
        was = before[view.name].state if view.name in before else "waiting"
        if view.state == was:
            continue
        took = duration(max(0.0, view.ended - view.started)) if view.ended is not None and view.started is not None else ""
        if view.state == "complete":
            yield f"the {view.name} is complete{f' after {took}' if took else ''}"
        elif view.state == "running":
            yield f"the {view.name} runs{f': {view.note}' if view.note else ''}; {commands.follow(view.job)}"
        elif view.state == "queued":
            again = "was put back by Kueue and waits again" if was in ("starting", "stuck", "running", "retrying") else "waits"
            yield f"the {view.name} {again} {view.note}; {commands.kubectl('get workloads')}"
        elif view.state == "missing":
            yield f"the Job {view.job} of the {view.name} is not there"


def ended_badly(stage: str, pod: Pod) -> str:
    """A failed attempt in one line: exit code, its meaning, and the last line."""
    broken = pod.broken
    if broken and broken.exit_code:
        said = last_line(broken.ended_message)
        return f"an attempt of the {stage} ended, exit {exit_meaning(broken.exit_code, broken.ended_reason)}; pod {pod.name}" + (
            f" said: {said}" if said else "")  # fmt: skip
    return f"an attempt of the {stage} ended, {pod.reason or 'failed'}{f': {pod.message}' if pod.message else ''}; pod {pod.name}"


def trouble_lines(stage: str, trouble: Trouble, now: float) -> list[str]:
    """A warning: what keeps the stage from running, what to do, and when it ends the run."""
    parts = [f"the {stage} cannot run: {trouble.what} ({trouble.reason})"]
    if trouble.limit_s is None:
        parts = [f"the {stage}: {trouble.what} ({trouble.reason})"]
    if trouble.says:
        parts.append(f"Kubernetes says: {trouble.says.strip()}")
    parts.append(f"to do: {trouble.to_do}{f'; {trouble.heals}' if trouble.heals else ''}")
    parts.append(f"more: {trouble.more}")
    if trouble.deadline is not None:
        parts.append(f"if nothing changes the run fails in {duration(max(0.0, trouble.deadline - now))} ({trouble.limit_name})")
    return [parts[0], *(f"  {part}" for part in parts[1:])]
