"""What a release was made of: its run's artifacts, proved by the sha256 of its own files."""

from __future__ import annotations

from dataclasses import dataclass

from pocketvlm.artifacts.artifact import Artifact, find
from pocketvlm.artifacts.evaluated import report_of
from pocketvlm.artifacts.pull import read_release
from pocketvlm.artifacts.release import Release
from pocketvlm.artifacts.store import Store
from pocketvlm.errors import UserError


@dataclass(frozen=True)
class Origin:
    """A release and where it came from."""

    release: Release
    dataset: Artifact
    merged: Artifact


def trace(store: Store, name: str, version: str | None) -> Origin:
    """The release (None: the latest) and its artifacts.

    Raises UserError for a release that is not there, or one whose run has made other files since; Corrupt for wrong bytes.
    """
    release = read_release(store, name, version)
    report = report_of(store, release.run)
    if report is None:
        raise UserError(f"{store.url}: run {release.run}, of which {name} {release.version} was made, is not there; publish from "
                        "the store that it was made in")
    inputs = report.manifest.inputs
    found = {stage: find(store, kind, inputs[stage]) for stage, kind in
             (("labeller", "datasets"), ("merger", "models"), ("quantiser", "ggufs"))}  # fmt: skip
    dataset, merged, ggufs = (found[stage] for stage in ("labeller", "merger", "quantiser"))
    if dataset is None or merged is None or ggufs is None:
        gone = ", ".join(stage for stage, artifact in found.items() if artifact is None)
        raise UserError(f"{store.url}: what the {gone} of run {release.run} made is not there; run it again")
    made = {entry.sha256 for entry in ggufs.files}
    if not {file.sha256 for file in release.files if file.type} <= made:
        raise UserError(f"{store.url}: run {release.run} has made other files since {name} {release.version} was released, so "
                        "its data and metrics are not those of the release; publish the version that it released last")
    return Origin(release, dataset, merged)
