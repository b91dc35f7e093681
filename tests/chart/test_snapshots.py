"""The default render of each run file, object by object. A change is made on purpose: `make snapshots` writes it anew."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from .conftest import JOBS, Render

SNAPSHOTS = Path(__file__).parent / "snapshots"


@pytest.mark.parametrize("job", JOBS)
def test_the_render_of_a_run_file_is_the_one_that_was_looked_at(render: Render, job: str) -> None:
    text, place = render(job=job).text, SNAPSHOTS / f"{job}.yaml"
    if os.environ.get("RENEW_SNAPSHOTS"):
        place.parent.mkdir(exist_ok=True)
        place.write_text(text)
    assert place.read_text() == text, "look at the difference; if it is meant, `make snapshots`"


def test_there_is_no_snapshot_too_many() -> None:
    assert sorted(path.stem for path in SNAPSHOTS.iterdir()) == JOBS
