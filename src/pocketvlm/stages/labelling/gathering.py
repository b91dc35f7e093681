"""The images of all shares in the order of the source, each with its verdict: what is kept, and why the rest is not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from pocketvlm.artifacts.corrections import Corrections
from pocketvlm.artifacts.dataset import Quarantined
from pocketvlm.run_file import Recipe
from pocketvlm.sources.record import Record
from pocketvlm.stages.labelling.pieces import Kept, Spool, read_share
from pocketvlm.stages.labelling.tally import Tally
from pocketvlm.stages.labelling.verdict import Judge, Verdict
from pocketvlm.stages.sharing import Share
from pocketvlm.student.tasks import kind_of
from pocketvlm.teacher.answers import Panel


class Selection:
    """Decides, image by image in the order of the source, which are kept: sound, new, with a label, in a class with room."""

    def __init__(self, recipe: Recipe, corrections: Corrections | None) -> None:
        self._judge = Judge(recipe.labeller, kind_of(recipe.task), corrections)
        self._per_class = recipe.labeller.per_class
        self._seen: set[str] = set()
        self.counts: Counter[str] = Counter(dict.fromkeys(recipe.task.classes, 0))

    def take(self, item: Kept) -> tuple[Verdict, Quarantined | None]:
        """The verdict, and why the image is not kept, if it is not."""
        verdict = self._judge.verdict(item)
        if verdict.problem is not None:
            return verdict, Quarantined(item.record.source_id, verdict.problem.reason, verdict.problem.detail)
        if item.sha256 not in self._seen:
            if self._per_class is not None and self.counts[verdict.label] >= self._per_class:
                detail = f"{verdict.label} has {self._per_class} images, as many as per_class allows"
                return verdict, Quarantined(item.record.source_id, "class_full", detail)
            self._seen.add(item.sha256)
            self.counts[verdict.label] += 1
        return verdict, None

    @property
    def broke(self) -> bool:
        """Whether the money is gone."""
        return self._judge.broke

    @property
    def ended(self) -> bool:
        """Whether nothing that follows is kept: every class has all the images that it may have, or the money is gone."""
        return self.broke or (self._per_class is not None and min(self.counts.values()) >= self._per_class)


class Enough:
    """Says when the pieces of the source that were seen so far will do."""

    def __init__(self, selection: Selection, recall: Callable[[Path, Sequence[tuple[int, Panel]]], None] | None) -> None:
        """`recall` is told what each piece has of the teachers, by place in the source."""
        self._selection, self._recall = selection, recall
        self._records = 0

    def __call__(self, piece: Path) -> bool:
        panels = []
        for place, item in enumerate(read_share([piece]), start=self._records):
            self._records = place + 1
            if isinstance(item, Kept):
                self._selection.take(item)
                panels.append((place, item.answers))
        if self._recall:
            self._recall(piece, panels)
        return self._selection.ended


class Gathering:
    """Usable images once, further records of the same bytes by index, and what was refused."""

    def __init__(self, recipe: Recipe, selection: Selection) -> None:
        self._selection = selection
        self._index_of: dict[str, int] = {}
        self.spool = Spool()
        self.verdicts: list[Verdict] = []
        """Of the images in the spool."""
        self.repeats: dict[int, list[Record]] = {}
        self.quarantine: list[Quarantined] = []
        self.tally = Tally(recipe.labeller, kind_of(recipe.task))
        self.total = 0

    def add(self, items: Iterable[Kept | Quarantined]) -> None:
        """The next records of the source. Nothing depends on those behind the end, of which there are more or fewer."""
        for item in items:
            if self._selection.ended:
                if isinstance(item, Kept):
                    self.tally.pay(item, counts=False)
                continue
            self.total += 1
            if isinstance(item, Quarantined):
                self.quarantine.append(item)
                continue
            verdict, refused = self._selection.take(item)
            self.tally.pay(item, counts=not self._selection.broke)
            self.tally.add(item, verdict)
            if refused is not None:
                self.quarantine.append(refused)
            else:
                self._keep(replace(item, record=replace(item.record, label=verdict.label), answers=()), verdict)

    def _keep(self, item: Kept, verdict: Verdict) -> None:
        if item.sha256 in self._index_of:
            self.repeats.setdefault(self._index_of[item.sha256], []).append(item.record)
        else:
            self._index_of[item.sha256] = len(self.spool)
            self.spool.add(item)
            self.verdicts.append(verdict)


def gather(shares: Sequence[Share], total: int, recipe: Recipe, corrections: Corrections | None) -> Gathering:
    """All records in the source's order. `total` of them were dealt to shares; a single share may have ended before."""
    gathering = Gathering(recipe, Selection(recipe, corrections))
    readers = [read_share(share.folders) for share in shares]
    if len(readers) == 1:
        gathering.add(readers[0])
    else:
        gathering.add(next(readers[place % len(readers)]) for place in range(total))  # as `dealt`, without holding all rows
    return gathering
