"""Which artifact each stage of a run made or found, when, after how many attempts.

The next stage finds its inputs here, by the id of the run; what it then reads is checked against the manifest.

Layout: `runs/<run>/run.yaml` and `runs/<run>/<stage>.json`, overwritten by each attempt.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Literal

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from pocketvlm.artifacts.manifest import canonical_json
from pocketvlm.artifacts.store import KeyMissing, Store
from pocketvlm.errors import Corrupt
from pocketvlm.run_file import Recipe


class StageRecord(BaseModel):
    """One stage of a run. Times are ISO 8601 in UTC; `seconds` is the time of the last attempt."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    stage: str
    kind: str
    id: str
    status: Literal["running", "done", "found", "failed"]
    attempts: int = 1
    """Processes that began it; with shards, of all shards."""
    started: str
    finished: str = ""
    seconds: float = 0.0
    message: str = ""


def run_id(recipe: Recipe) -> str:
    """The name of the recipe and 8 hex digits over all of it: another setting, another run."""
    digest = hashlib.sha256(canonical_json(recipe.model_dump(mode="json"))).hexdigest()
    return f"{recipe.name}-{digest[:8]}"


def write_recipe(store: Store, recipe: Recipe) -> str:
    """Writes `run.yaml`, defaults spelt out, as a run file of the same id, and returns that. A recipe holds no secret."""
    run, block = run_id(recipe), recipe.model_dump(mode="json")
    if "longest_edge_px" not in recipe.device.model_fields_set:
        # A family without tile budget refuses the key where it is set, and does not look at its default.
        del block["device"]["longest_edge_px"]
    text = yaml.safe_dump({"run": block}, sort_keys=False, allow_unicode=True, width=120)
    store.write(f"runs/{run}/run.yaml", text.encode())
    return run


def change_record(
    store: Store, run: str, stage: str, change: Callable[[StageRecord | None], StageRecord | None]
) -> None:
    """Writes what `change` makes of the record that is there (None: none yet); None from it leaves all as it is.

    Compare and set: of two processes that write at once, the second sees what the first wrote.
    """
    key = f"runs/{run}/{stage}.json"
    while True:
        tagged = store.read_tagged(key)
        record = change(_parsed(store, key, tagged[0]) if tagged else None)
        if record is None:
            return
        data = canonical_json(record.model_dump(mode="json"))
        if store.replace(key, data, tagged[1]) if tagged else store.create(key, data):
            return


def read_record(store: Store, run: str, stage: str) -> StageRecord | None:
    """The record of a stage; None if it has not started. Raises Corrupt."""
    key = f"runs/{run}/{stage}.json"
    try:
        return _parsed(store, key, store.read(key))
    except KeyMissing:
        return None


def _parsed(store: Store, key: str, data: bytes) -> StageRecord:
    try:
        return StageRecord.model_validate_json(data)
    except ValidationError as error:
        raise Corrupt(f"{store.url}: {key} is not a record ({error.errors()[0]['msg']}); delete it") from error
