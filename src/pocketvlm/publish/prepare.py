"""Puts together, on this machine, what would be uploaded: files, decisions, cards. Nothing is sent."""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pocketvlm.artifacts.files import fetch_files, hash_file
from pocketvlm.artifacts.manifest import canonical_json
from pocketvlm.artifacts.release import Release, ReleaseFile
from pocketvlm.artifacts.store import Store
from pocketvlm.publish import card
from pocketvlm.publish.dataset_copy import Credits, read_credits, shards, write_public
from pocketvlm.publish.files import Repository
from pocketvlm.publish.hub import LISTING, listing
from pocketvlm.publish.licences import Decision, decide, may_pass_on, reasons
from pocketvlm.publish.origin import Origin

Part = Literal["gguf", "merged", "dataset"]
PARTS: tuple[Part, ...] = ("gguf", "merged", "dataset")
MERGED = "merged"
"""Folder of the safetensors in the model's repository."""
CARD, OUTDATED = "MODEL_CARD.md", ("model_card", "report")
"""Roles that the repository does not take over: its README.md holds the card, and the report shows images of the dataset."""
GOLDEN = "golden/golden.json"


@dataclass(frozen=True)
class Wanted:
    """What a person asked for."""

    to: str
    """`owner/name` of the model's repository."""
    parts: Collection[Part]
    licence: str
    """The Hub's id of the model's licence."""
    non_commercial: bool = False

    @property
    def dataset_id(self) -> str:
        return f"{self.to}-data"


@dataclass(frozen=True)
class Prepared:
    """All that would be uploaded."""

    release: Release
    repositories: list[Repository]
    """The dataset's first, so that the model's card never names one that is not there."""
    decision: Decision | None
    """Of the dataset's licences; None: it was not asked for."""
    golden_left_out: int
    card: str
    """Of the model; empty if only the dataset was asked for."""


def prepare(store: Store, origin: Origin, wanted: Wanted, folder: Path) -> Prepared:
    """Fetches, copies and writes below `folder`; what is there already is kept. Raises Corrupt, StoreUnavailable."""
    data = origin.dataset.fetch(folder / "dataset")
    credits = read_credits(data)
    decision = decide(credits.licences, non_commercial=wanted.non_commercial)
    passes = "dataset" in wanted.parts and decision.allowed
    why = "; ".join(reasons(decision)) if "dataset" in wanted.parts else "it was not asked for"
    release, golden_left_out = _release_files(store, origin, credits, wanted, folder / "release")
    said = card.Said(
        model_id=wanted.to, dataset_id=wanted.dataset_id if passes else None, not_published="" if passes else why,
        licence=wanted.licence, merged=MERGED in wanted.parts, golden_left_out=golden_left_out, credits=credits,
    )  # fmt: skip
    repositories, text = [], ""
    if passes:
        repositories.append(_dataset(origin, decision, said, wanted, data, folder / "public"))
    if set(wanted.parts) - {"dataset"}:
        model, text = _model(origin, release, said, wanted, folder)
        repositories.append(model)
    for repository in repositories:
        _finish(repository, credits, folder)
    return Prepared(release, repositories, decision if "dataset" in wanted.parts else None, golden_left_out, text)


def _release_files(store: Store, origin: Origin, credits: Credits, wanted: Wanted, folder: Path) -> tuple[Release, int]:
    """The release that lists what is published of it, fetched; and how many golden images may not be passed on."""
    whole = origin.release
    files = [file for file in whole.files if "gguf" in wanted.parts or not file.type]
    fetch_files(store, [(file, whole.root + file.name) for file in files], folder)
    golden: dict[str, Any] = json.loads((folder / GOLDEN).read_bytes())
    kept = [row for row in golden["images"]
            if may_pass_on(credits.licence_of.get(Path(row["file"]).stem), non_commercial=wanted.non_commercial)]  # fmt: skip
    dropped = {f"golden/{row['file']}" for row in golden["images"] if row not in kept}
    files = [file for file in files if file.role not in OUTDATED and file.name not in dropped]
    if dropped:
        changed = folder.with_name("changed")
        (changed / "golden").mkdir(parents=True, exist_ok=True)
        (changed / GOLDEN).write_bytes(canonical_json({**golden, "images": kept}))
        entry = ReleaseFile(**hash_file(changed / GOLDEN, GOLDEN).model_dump(), role="golden")
        files = [entry if file.name == GOLDEN else file for file in files]
    types = whole.types if "gguf" in wanted.parts else {}
    return whole.model_copy(update={"files": files, "types": types}), len(dropped)


def _model(origin: Origin, release: Release, said: card.Said, wanted: Wanted, folder: Path) -> tuple[Repository, str]:
    repository = Repository(wanted.to, "model")
    fetched = folder / "release"
    for file in release.files:
        changed = folder / "changed" / file.name
        path = changed if file.name == GOLDEN and said.golden_left_out else fetched / file.name
        repository.add(file.name, path)
    (folder / "release.json").write_bytes(release.to_bytes())
    repository.add("release.json", folder / "release.json")
    if said.merged:
        merged = origin.merged.fetch(folder / MERGED)
        for entry in origin.merged.files:
            repository.add(f"{MERGED}/{entry.name}", merged / entry.name)
    prompt, grammar = ((fetched / name).read_bytes().decode() for name in ("prompt.txt", "grammar.gbnf"))
    measured = release.model_copy(update={"types": origin.release.types})
    text = card.model_card(measured, (fetched / CARD).read_bytes().decode(), prompt, grammar, said)
    (folder / "README.md").write_bytes(text.encode())
    repository.add("README.md", folder / "README.md")
    return repository, text


def _dataset(origin: Origin, decision: Decision, said: card.Said, wanted: Wanted, data: Path, folder: Path) -> Repository:
    repository = Repository(wanted.dataset_id, "dataset")
    folder.mkdir(parents=True, exist_ok=True)
    left_out = 0
    for shard in shards(data):
        left_out += write_public(shard, folder / shard.name)
        repository.add(shard.name, folder / shard.name)
    (folder / "README.md").write_bytes(card.dataset_card(origin.release, decision.hub_ids, left_out, said).encode())
    repository.add("README.md", folder / "README.md")
    return repository


def _finish(repository: Repository, credits: Credits, folder: Path) -> None:
    """Adds the authors, where the card cannot show them all, and the list of all files."""
    place = folder / repository.type
    place.mkdir(exist_ok=True)
    if authors := card.attribution(credits.licences):
        (place / "ATTRIBUTION.md").write_bytes(authors.encode())
        repository.add("ATTRIBUTION.md", place / "ATTRIBUTION.md")
    (place / LISTING).write_bytes(listing(repository.files))
    repository.add(LISTING, place / LISTING)
