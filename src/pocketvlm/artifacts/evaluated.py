"""Runs that have been evaluated in this store, by their id or by what they released."""

from __future__ import annotations

import re

from pocketvlm.artifacts.artifact import Artifact, find
from pocketvlm.artifacts.pull import read_release
from pocketvlm.artifacts.release import NAME
from pocketvlm.artifacts.run_record import read_record
from pocketvlm.artifacts.store import Store
from pocketvlm.errors import UserError


def run_named(store: Store, named: str) -> str | None:
    """The run of this id whose evaluator has begun, or that made the release NAME or NAME/VERSION; None: there is neither.

    Raises Corrupt.
    """
    if re.fullmatch(NAME, named) and read_record(store, named, "evaluator"):
        return named
    name, _, version = named.partition("/")
    try:
        return read_release(store, name, version or None).run
    except UserError:
        return None


def report_of(store: Store, run: str) -> Artifact | None:
    """The report of a run; None before its evaluator has published one. Raises Corrupt."""
    record = read_record(store, run, "evaluator")
    return find(store, record.kind, record.id) if record else None
