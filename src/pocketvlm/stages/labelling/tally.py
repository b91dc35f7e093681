"""What the teachers said of all images together: for the report, and for the price of a label."""

from __future__ import annotations

from collections import Counter
from typing import Any

from pocketvlm.artifacts.corrections import accuracy_of
from pocketvlm.run_file import Labeller, Teacher
from pocketvlm.stages.labelling.field_facts import Agreement
from pocketvlm.stages.labelling.pieces import Kept
from pocketvlm.stages.labelling.verdict import Verdict
from pocketvlm.student.tasks import TaskKind
from pocketvlm.teacher.answers import NONE, Outcome
from pocketvlm.teacher.budget import cost_usd


class _Sheet:
    """One teacher's sums. Equal images were paid for once and count once."""

    def __init__(self, teacher: Teacher) -> None:
        self._teacher = teacher
        self.votes = teacher.votes
        self._seen: set[tuple[str, int]] = set()
        self._kinds: Counter[str] = Counter()
        self._models: set[str] = set()
        self._sums: Counter[str] = Counter()
        self.usd: float | None = None if teacher.price is None else 0.0

    def add(self, outcome: Outcome, *, counts: bool) -> None:
        if (outcome.image, outcome.vote) in self._seen:
            return
        self._seen.add((outcome.image, outcome.vote))
        if counts:
            self._kinds[outcome.kind] += 1
            self._models.add(outcome.model)
        self._sums.update(
            calls=outcome.calls, input_tokens=outcome.usage.input_tokens, output_tokens=outcome.usage.output_tokens
        )
        if self.usd is not None and self._teacher.price is not None:
            self.usd += cost_usd(outcome.usage, self._teacher.price)

    def facts(self) -> dict[str, Any]:
        return {
            "model": self._teacher.model, "models_returned": sorted(self._models - {""}), "votes": self._teacher.votes,
            "answers": dict(sorted(self._kinds.items())),
        }  # fmt: skip

    def costs(self) -> dict[str, Any]:
        return {"model": self._teacher.model, **self._sums, "usd": None if self.usd is None else round(self.usd, 6)}


class Tally:
    """Counts as verdicts come."""

    def __init__(self, labeller: Labeller, kind: TaskKind) -> None:
        teachers = labeller.teachers
        self._sheets = [_Sheet(teacher) for teacher in teachers]
        self._closed = bool(kind.classes)
        """Whether labels are few: then it is counted which is taken for which."""
        self._by_field, self._opinion_by_field, self._checked_by_field = Agreement(kind), Agreement(kind), Agreement(kind)
        self._agreements: list[float] = []
        self._pairs: Counter[tuple[str, str]] = Counter()
        self._checked: list[tuple[str | None, str]] = []
        self.seen: set[str] = set()
        """Sha256 of every usable image."""

    def pay(self, item: Kept, *, counts: bool) -> None:
        """The answers for one image. Only if it `counts` are they facts: how many were in flight at the end is chance."""
        for sheet, own in zip(self._sheets, item.answers, strict=False):
            for outcome in own:
                sheet.add(outcome, counts=counts)

    def add(self, item: Kept, verdict: Verdict) -> None:
        """One usable image and what became of it. Equal ones count once."""
        if item.sha256 in self.seen:
            return
        self.seen.add(item.sha256)
        if verdict.agreement is not None:
            self._agreements.append(verdict.agreement)
            if verdict.by_machine is not None and verdict.said:
                self._by_field.add(verdict.by_machine, verdict.said)
        first, second = verdict.by_teacher if len(verdict.by_teacher) == 2 else (None, None)
        if first and second:
            self._pairs[first, second] += 1
            self._opinion_by_field.add(first, [second])
        if verdict.by_person is not None:
            self._checked.append((verdict.by_machine, verdict.by_person))
            if verdict.by_machine is not None and verdict.by_person != NONE:
                self._checked_by_field.add(verdict.by_person, [verdict.by_machine])

    def facts(self) -> dict[str, Any]:
        """What is equal for equal answers; empty without teacher and corrections."""
        facts: dict[str, Any] = {}
        if self._sheets:
            facts["teachers"] = [sheet.facts() for sheet in self._sheets]
            if self._agreements and sum(sheet.votes for sheet in self._sheets) > 1:  # one vote always agrees
                facts["agreement"] = round(sum(self._agreements) / len(self._agreements), 6)
                facts |= _named("field_agreement", self._by_field)
        if len(self._sheets) == 2:
            facts["second_opinion"] = {
                "images": sum(self._pairs.values()),
                "equal": sum(count for (first, second), count in self._pairs.items() if first == second),
                **_named("fields", self._opinion_by_field),
                "confusion": [[first, second, count] for (first, second), count in sorted(self._pairs.items())],
            }
        if self._checked:
            facts["corrections"] = accuracy_of(self._checked) | _named("fields", self._checked_by_field)
        if not self._closed:  # nearly every label would have a row of its own
            for name in ("second_opinion", "corrections"):
                facts.get(name, {}).pop("confusion", None)
        return facts

    def costs(self, kept: int, asked_usd: float) -> dict[str, Any]:
        """Calls, tokens and US dollars of all answers, whoever paid for them; `usd_per_kept_label` for `kept` images.

        `asked_usd` is what this process knows of: more than the images that were looked at, if some were asked ahead.
        """
        known = [sheet.usd for sheet in self._sheets if sheet.usd is not None]
        total = round(max(sum(known), asked_usd), 6) if known and len(known) == len(self._sheets) else None
        return {
            "teachers": [sheet.costs() for sheet in self._sheets], "usd": total,
            "usd_per_kept_label": None if total is None or not kept else round(total / kept, 8),
        }  # fmt: skip


def _named(name: str, agreement: Agreement) -> dict[str, dict[str, float]]:
    facts = agreement.facts()
    return {name: facts} if facts else {}
