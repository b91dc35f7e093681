"""The teachers of a run, and the images of a piece before them: JPEGs on disk until the last answer is journalled."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

from pocketvlm.errors import Corrupt
from pocketvlm.run_file import Recipe
from pocketvlm.stages.labelling.pieces import write_answers
from pocketvlm.stages.labelling.watch import LOOK_EVERY_S, Watch
from pocketvlm.stages.stage import Work
from pocketvlm.teacher.answers import Client, Panel, Reply, TeacherImage, Ticket
from pocketvlm.teacher.budget import Budget
from pocketvlm.teacher.open import open_teacher

LIVE_PIECE_RECORDS = 64
"""Small, so that few images are prepared before the first is asked, and few are asked too many when every class is full."""
BATCH_PIECE_RECORDS = 4096
"""Large: a batch is answered within a day, whatever its size."""
ALL_AHEAD = 1 << 30
"""Every batch may be waited for at once."""


@contextmanager
def open_panel(work: Work) -> Iterator[TeacherPanel | None]:
    """The teachers of the run file; None where it has none. Raises as `open_teacher` does."""
    labeller, environment = work.recipe.labeller, work.environment
    if labeller.teacher is None:
        yield None
        return
    teachers = [("teacher", labeller.teacher, environment.teacher_key)]
    if labeller.second_teacher is not None:
        teachers.append(("second_teacher", labeller.second_teacher, environment.second_teacher_key))
    budget = Budget(labeller.max_cost_usd)
    folder = work.scratch / "teacher"
    with ExitStack() as stack:
        clients = []
        for name, teacher, key in teachers:
            scratch = folder / name
            scratch.mkdir(parents=True)
            client = open_teacher(
                teacher, work.recipe.task, work.recipe_folder, where=f"run.labeller.{name}", store=work.store, scratch=scratch,
                key=key, budget=budget, progress=work.progress,
            )  # fmt: skip
            clients.append(stack.enter_context(client))
        yield TeacherPanel(clients, budget, folder / "images", *_rhythm(work.recipe))


def _rhythm(recipe: Recipe) -> tuple[int, int]:
    """Records of a piece, and pieces that may wait for answers.

    A batch cannot be ended early, so where a cap may end the run there is one at a time: of the images that would fill the
    classes if all were kept. Of two teachers one would run ahead of the other and of the money: as far as it calls at once.
    """
    labeller = recipe.labeller
    teachers = labeller.teachers
    if all(teacher.way == "live" for teacher in teachers):
        if len(teachers) > 1 and labeller.max_cost_usd is not None:
            return min(LIVE_PIECE_RECORDS, sum(teacher.in_flight for teacher in teachers)), 0
        return LIVE_PIECE_RECORDS, 1 + 2 * sum(teacher.in_flight for teacher in teachers) // LIVE_PIECE_RECORDS
    if labeller.per_class is not None:
        return min(BATCH_PIECE_RECORDS, labeller.per_class * len(recipe.task.classes)), 0
    if labeller.max_cost_usd is not None:
        return BATCH_PIECE_RECORDS // 8, 0
    return BATCH_PIECE_RECORDS, ALL_AHEAD


@dataclass(frozen=True)
class TeacherPanel:
    """Teachers that are asked at the same time."""

    clients: Sequence[Client]
    budget: Budget
    folder: Path
    piece_records: int
    """Images that are given to them at once."""
    ahead: int
    """Pieces that wait for answers while the next are prepared."""
    posed: set[Path] = field(default_factory=set)
    """Pieces that were given to them by this process."""

    def recall(self, piece: Path, panels: Sequence[tuple[int, Panel]]) -> None:
        """Counts the money of a piece that was saved before, by place in the source: its answers are in the journal."""
        if piece in self.posed:
            return
        for number, client in enumerate(self.clients):
            answered = [(place, own[number]) for place, own in panels if own[number]]
            client.ask([TeacherImage(place, outcomes[0].image, 0, _gone) for place, outcomes in answered]).wait()
            client.stats.cached = 0  # progress is about the images that are shown from now on

    def pose(self, piece: Path, jpegs: JpegSpool, watch: Watch) -> Posed:
        """Gives the images of a piece to every teacher, without waiting."""
        self.posed.add(piece)
        return Posed(piece, jpegs, [client.ask(jpegs.images(number)) for number, client in enumerate(self.clients)], watch)

    def spool(self, name: str) -> JpegSpool:
        """An empty place for the JPEGs of a piece."""
        return JpegSpool(self.folder / name, len(self.clients))


class JpegSpool:
    """What teachers see of a piece's images, in one file for each teacher."""

    def __init__(self, folder: Path, teachers: int) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        self._folder = folder
        self._entries: list[list[TeacherImage]] = [[] for _ in range(teachers)]
        self._ends = [0] * teachers

    def add(self, position: int, jpegs: Sequence[bytes]) -> None:
        """The next image, as each teacher sees it; `position` is its place in the source."""
        for number, jpeg in enumerate(jpegs):
            path, start = self._folder / f"{number}.bin", self._ends[number]
            with path.open("ab") as file:
                file.write(jpeg)
            self._ends[number] += len(jpeg)
            reader = _Slice(path, start, len(jpeg))
            self._entries[number].append(TeacherImage(position, hashlib.sha256(jpeg).hexdigest(), len(jpeg), reader))

    def images(self, teacher: int) -> Sequence[TeacherImage]:
        """For the teacher of this number."""
        return self._entries[teacher]

    def clear(self) -> None:
        """Frees the disk."""
        shutil.rmtree(self._folder)


@dataclass(frozen=True)
class _Slice:
    path: Path
    start: int
    size: int

    def __call__(self) -> bytes:
        with self.path.open("rb") as file:
            file.seek(self.start)
            return file.read(self.size)


def _gone() -> NoReturn:
    raise Corrupt("an answer of a piece under partial/datasets/ is no longer under answers/; put it back, or delete "
                  "the pieces of this dataset: then it is asked and paid for again")  # fmt: skip


@dataclass(frozen=True)
class Posed:
    """A piece that teachers are busy with."""

    piece: Path
    jpegs: JpegSpool
    tickets: Sequence[Ticket]
    watch: Watch

    def settle(self) -> None:
        """Waits for every answer and adds them to the piece."""
        replies: dict[int, Sequence[Reply]] = {}
        while len(replies) < len(self.tickets):  # in turn: where one teacher fails, nobody waits a day for the other's batch
            for number, ticket in enumerate(self.tickets):
                if number not in replies and ticket.done_in(LOOK_EVERY_S):
                    replies[number] = ticket.wait()
            self.watch.tell()
        in_order = [replies[number] for number in range(len(self.tickets))]
        write_answers(self.piece, ([reply.outcomes for reply in of_image] for of_image in zip(*in_order, strict=True)))
        self.watch.settled(len(self.jpegs.images(0)))
        self.jpegs.clear()
