"""The work on one artifact, done in pieces by N processes: each piece is saved once, and anybody sees which are there.

Layout: `partial/<kind>/<id>/shares-of-<N>/<share>/<piece>/<sha256, 12 hex>/<file>`, then `.../<share>/<piece>.json`,
written last. Files lie under their own hash and the list is created by a conditional write, so of two processes that do
one piece at once the first wins and both go on from the same bytes. Shares of another N lie apart.
"""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from pocketvlm.artifacts.files import fetch_files, hash_folder, upload_files
from pocketvlm.artifacts.manifest import FileEntry, canonical_json
from pocketvlm.artifacts.store import KeyMissing, Store
from pocketvlm.errors import Corrupt

PieceName = tuple[int, str]
"""Index of a share, and the piece's name in it."""


class _Piece(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    seconds: float
    files: list[FileEntry]


class Shares:
    """The pieces of `count` shares of the work on one artifact."""

    def __init__(self, store: Store, kind: str, id: str, count: int) -> None:
        self._store = store
        self._root = f"partial/{kind}/{id}/shares-of-{count}/"

    def saved(self) -> set[PieceName]:
        """Every piece that is there, whoever saved it."""
        found = set()
        for stored in self._store.list(self._root):
            share, name, *rest = stored.key.removeprefix(self._root).split("/")
            if not rest and name.endswith(".json"):
                found.add((int(share), name.removesuffix(".json")))
        return found

    def save(self, piece: PieceName, folder: Path, seconds: float) -> None:
        """Keeps the files of `folder` as a piece that took `seconds` to make, unless it is there already.

        When it returns, the piece outlives this process; but the bytes may be those of another one: see `fetch`.
        """
        present = {stored.key: stored.size for stored in self._store.list(f"{self._piece_root(piece)}/")}
        key, data = self._upload(piece, folder, seconds, present)
        self._store.create(key, data)

    def replace(self, piece: PieceName, folder: Path, seconds: float) -> None:
        """The same over what is there. At no moment the piece is missing: those that have ended would not come back."""
        self._store.write(*self._upload(piece, folder, seconds, {}))

    def _upload(self, piece: PieceName, folder: Path, seconds: float, present: dict[str, int]) -> tuple[str, bytes]:
        """Uploads what is not `present`; returns the list of the piece and where it belongs."""
        root = self._piece_root(piece)
        entries = hash_folder(folder)
        upload_files(self._store, folder, [(entry, _file_key(root, entry)) for entry in entries], present)
        return f"{root}.json", canonical_json(_Piece(seconds=seconds, files=entries).model_dump(mode="json"))

    def fetch(self, piece: PieceName, to: Path) -> float:
        """Puts the files of a piece into `to`, keeping those that are right already; returns the seconds that it took.

        Raises Corrupt for a piece with missing or wrong bytes.
        """
        root = self._piece_root(piece)
        try:
            found = _Piece.model_validate_json(self._store.read(f"{root}.json"))
        except (KeyMissing, ValidationError) as error:
            raise Corrupt(f"{self._store.url}: {root}.json cannot be read ({error})") from error
        to.mkdir(parents=True, exist_ok=True)
        fetch_files(self._store, [(entry, _file_key(root, entry)) for entry in found.files], to)
        return found.seconds

    def _piece_root(self, piece: PieceName) -> str:
        share, name = piece
        return f"{self._root}{share}/{name}"


def _file_key(root: str, entry: FileEntry) -> str:
    return f"{root}/{entry.sha256[:12]}/{entry.name}"
