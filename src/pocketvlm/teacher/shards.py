"""Batches that are not collected yet, in the store, so that a killed run goes on with them and two runs share them.

`answers/<key>/batches/<shard>.json` says what a shard asks and how far it is; `answers/<key>/batches/open.json` lists the shards
that count, and changes only by compare-and-set: planning shards, and putting others (or none) in the place of one, are single
steps.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from pocketvlm.artifacts.manifest import canonical_json
from pocketvlm.artifacts.store import Store
from pocketvlm.errors import Corrupt
from pocketvlm.teacher.answers import Outcome

Status = Literal["planned", "uploaded", "creating", "created", "ended"]
_IDS = TypeAdapter(list[str])
ID_LENGTH = 32
"""Hex digits of a sha256."""


class Repair(BaseModel):
    """A question that is asked once more, since its first answer was not valid."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    text: str
    """The first answer."""
    outcome: Outcome
    """What it would have been without a repair: `invalid`, with why and what it cost."""


class Shard(BaseModel):
    """One batch, from its plan to its end."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: str
    """Of what is asked, in its order."""
    status: Status = "planned"
    """`planned`: nothing is on the server yet. `uploaded`: the file is. `creating`: who has `claim` is creating the batch.
    `created`: the batch is there. `ended`: collected, or given up; other shards may stand in its place."""
    ids: tuple[str, ...]
    """Custom ids; none once it has ended."""
    round: int = 0
    """How often its questions were in a shard that failed for them."""
    again: int = 0
    """Above 0 where the same was asked by a shard that has ended."""
    dialect: dict[str, str] = {}
    """How the server is spoken to."""
    repairs: dict[str, Repair] = {}
    """By custom id: those that are asked to repair an answer."""
    planned_at_s: float = 0.0
    """Unix time: the batch is not older."""
    file_id: str = ""
    claim: str = ""
    batch_id: str = ""

    @classmethod
    def plan(cls, key: str, ids: Sequence[str], *, planned_at_s: float, **content: Any) -> Self:
        """A new shard of the questions of `key`."""
        shard = cls(id="", ids=tuple(ids), planned_at_s=planned_at_s, **content)
        asked = shard.model_dump(mode="json", include={"ids", "round", "again", "dialect", "repairs"})
        return shard.model_copy(update={"id": hashlib.sha256(canonical_json([key, asked])).hexdigest()[:ID_LENGTH]})

    @property
    def mark(self) -> str:
        """What its file and batch are called on the server. A plan of the same in another store has another one: the batch of
        one store is not taken for that of another, which may have deleted its answers."""
        return f"{self.id}-{round(self.planned_at_s * 1e6)}"

    def to_bytes(self) -> bytes:
        return self.model_dump_json().encode()


@dataclass
class Held:
    """A shard as it was read, and the tag by which it is changed."""

    shard: Shard
    tag: str


Planner = Callable[[Sequence[Shard]], Sequence[dict[str, Any]]]
"""Open shards -> what `Shard.plan` takes for each new one."""


class ShardBook:
    """The open shards of the questions of one key."""

    def __init__(self, store: Store, key: str) -> None:
        self._store, self._key = store, key
        self._root = f"answers/{key}/batches/"

    def open(self) -> list[Held]:
        """The shards that count."""
        return self._read_open(self._listed()[0])

    def _read_open(self, ids: Sequence[str]) -> list[Held]:
        return [held for id in ids if (held := self.read(id)) is not None and held.shard.status != "ended"]

    def read(self, id: str) -> Held | None:
        """None: there is none of this id. Raises Corrupt."""
        tagged = self._store.read_tagged(self.path(id))
        if tagged is None:
            return None
        try:
            return Held(Shard.model_validate_json(tagged[0]), tagged[1])
        except ValidationError as error:
            raise Corrupt(f"{self._store.url}/{self.path(id)}: is no state of a batch; put back a copy of it, or delete it: then "
                          "what it asked is asked and paid for again") from error  # fmt: skip

    def plan(self, planner: Planner) -> list[Held]:
        """Adds what `planner` makes of the open shards, all or nothing; it is called again if somebody else was faster."""
        while True:
            ids, tag = self._listed()
            shards = [held.shard for held in self._read_open(ids)]
            new = [self._placed(content) for content in planner(shards)]
            if not new or self._list([shard.id for shard in [*shards, *(held.shard for held in new)]], tag):
                return new

    def change(self, held: Held, **fields: Any) -> Held | None:
        """The shard with other fields; None: somebody else has changed it, read it again."""
        shard = held.shard.model_copy(update=fields)
        if not self._store.replace(self.path(shard.id), shard.to_bytes(), held.tag):
            return None
        return self.read(shard.id)

    def end(self, held: Held, successors: Sequence[dict[str, Any]] = ()) -> list[Held] | None:
        """Puts `successors` in the place of a shard, as one step; None: somebody else has ended it."""
        new = [self._placed(content) for content in successors]
        while True:
            ids, tag = self._listed()
            if held.shard.id not in ids:
                return None
            others = [id for id in ids if id != held.shard.id]
            if self._list([*others, *(one.shard.id for one in new)], tag):
                break
        ended = held.shard.model_copy(update={"status": "ended", "ids": (), "repairs": {}})
        self._store.write(self.path(ended.id), ended.to_bytes())
        return new

    def give_up(self, held: Held) -> bool:
        """Ends a shard of which nothing is on the server. False: somebody was about to upload it, read it again."""
        ended = self.change(held, status="ended")
        if ended is None:
            return False
        self.end(ended)
        return True

    def _placed(self, content: dict[str, Any]) -> Held:
        """A new shard's record, written or found; it does not count before it is listed."""
        again = 0
        while True:
            shard = Shard.plan(self._key, **content, again=again)
            self._store.create(self.path(shard.id), shard.to_bytes())
            held = self.read(shard.id)
            if held is not None and held.shard.status == "planned":
                return held
            again += 1

    def _listed(self) -> tuple[list[str], str | None]:
        key = f"{self._root}open.json"
        tagged = self._store.read_tagged(key)
        if tagged is None:
            return [], None
        try:
            return _IDS.validate_json(tagged[0]), tagged[1]
        except ValidationError as error:
            raise Corrupt(f"{self._store.url}/{key}: is no list of batches; put back a copy of it, or delete it: then what open "
                          "batches ask is asked and paid for again") from error  # fmt: skip

    def _list(self, ids: Sequence[str], tag: str | None) -> bool:
        data = json.dumps(list(dict.fromkeys(ids))).encode()
        key = f"{self._root}open.json"
        return self._store.create(key, data) if tag is None else self._store.replace(key, data, tag)

    def path(self, id: str) -> str:
        return f"{self._root}{id}.json"
