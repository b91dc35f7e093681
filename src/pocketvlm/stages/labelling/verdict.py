"""What an image is: by a person's correction, else by the teachers' votes, else by its source; or why it is left out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from pocketvlm.artifacts.corrections import Corrections
from pocketvlm.run_file import Labeller, Teacher
from pocketvlm.run_file.task import marker_in
from pocketvlm.sources.record import Problem
from pocketvlm.stages.labelling.pieces import Kept
from pocketvlm.student.tasks import TaskKind
from pocketvlm.teacher.answers import NONE, Outcome, Panel
from pocketvlm.teacher.budget import cost_usd


@dataclass(frozen=True)
class Verdict:
    """The label of one image, and where it comes from."""

    label: str = ""
    """A label of the task; empty where there is a problem."""
    answer: str = ""
    """What the student has to say of it."""
    problem: Problem | None = None
    by_machine: str | None = None
    """What teacher or source said, a label or `none`, whatever a person says; None: nothing."""
    by_person: str | None = None
    """The same of a person; None: nobody has looked."""
    by_teacher: tuple[str | None, ...] = ()
    """The commonest label of each teacher."""
    said: tuple[str, ...] = ()
    """The label of every valid answer."""
    confidence: float | None = None
    agreement: float | None = None
    """Share of the votes for `by_machine`."""
    votes: int | None = None
    reason: str | None = None
    """For `by_machine`."""
    runner_up: str | None = None
    model: str | None = None
    request_id: str | None = None
    cost_usd: float | None = None
    """Of all votes; None where the price is not known."""

    @property
    def own_reason(self) -> str | None:
        """The reason for `label`: one for another label than the person's is none."""
        return self.reason if self.label == self.by_machine else None


class _Vote:
    """A valid answer of a teacher."""

    def __init__(self, outcome: Outcome, kind: TaskKind) -> None:
        assert outcome.answer is not None, "only valid answers vote"
        self.outcome, self._answer = outcome, outcome.answer
        self.label = kind.label_of(outcome.answer)
        self.confidence = float(outcome.answer["confidence"])

    def text(self, key: str) -> str | None:
        return str(self._answer.get(key) or "") or None


class Judge:
    """Gives verdicts in the order of the source; the money is counted in that order too."""

    def __init__(self, labeller: Labeller, kind: TaskKind, corrections: Corrections | None) -> None:
        self._labeller = labeller
        self._kind = kind
        self._teachers = labeller.teachers
        self._rank = {name: place for place, name in enumerate([*kind.classes, NONE])}
        self._corrections = corrections
        self._spent_usd = 0.0
        self._paid: set[tuple[int, str, int]] = set()
        """Teacher, image and vote: equal images are paid once."""
        self.broke = False
        """Whether `max_cost_usd` was reached."""

    def verdict(self, item: Kept) -> Verdict:
        """What the image is."""
        machine = self._by_teachers(item.answers) if self._teachers else self._by_source(item)
        person = self._corrections.label(item.sha256) if self._corrections else None
        if person is not None:
            problem = Problem("corrected_to_none", "a person says that no label fits") if person == NONE else None
            machine = replace(machine, label="" if problem else person, problem=problem, by_person=person)
        return machine if machine.problem else self._answered(machine, item.sha256)

    def _answered(self, verdict: Verdict, sha256: str) -> Verdict:
        reason = self._kind.reason(verdict.label, sha256, verdict.own_reason)
        try:
            answer = self._kind.answer(verdict.label, reason)
        except ValueError as error:
            return replace(verdict, label="", problem=Problem("no_reason", f"{error}; templates in task.reasons give one"))
        if marker := marker_in(answer):  # texts of strangers: to the student it would be an image, or an end
            problem = Problem("special_token", f"its answer would hold {marker}, which is a token of the student's prompt")
            return replace(verdict, label="", problem=problem)
        return replace(verdict, answer=answer)

    def _by_source(self, item: Kept) -> Verdict:
        record, least = item.record, self._labeller.min_confidence
        problem = None
        if least is not None and record.confidence is not None and record.confidence < least:
            problem = _too_low("low_confidence", record.confidence, "min_confidence", least)
        return Verdict(
            "" if problem else record.label, problem=problem, by_machine=record.label, confidence=record.confidence,
            reason=record.reason,
        )  # fmt: skip

    def _by_teachers(self, panel: Panel) -> Verdict:
        cost = self._cost(panel)
        if self._over_budget(panel):
            spent = f"max_cost_usd {self._labeller.max_cost_usd:g} is spent, by this image or before"
            return Verdict(problem=Problem("over_budget", spent))
        by_teacher = [[_Vote(outcome, self._kind) for outcome in own if outcome.answer is not None] for own in panel]
        votes = [vote for own in by_teacher for vote in own]
        if not votes:
            first = next(outcome for own in panel for outcome in own)
            return Verdict(problem=Problem(f"teacher_{first.kind}", first.detail), cost_usd=cost, model=first.model)
        label = self._commonest(votes)
        own = [vote for vote in votes if vote.label == label]
        best = max(own, key=lambda vote: vote.confidence)
        # Rounded before they are compared: the mean of three times 0.7 is a little less.
        confidence, agreement = round(sum(vote.confidence for vote in own) / len(own), 6), round(len(own) / len(votes), 6)
        problem = self._problem(label, confidence, agreement)
        return Verdict(
            "" if problem else label, problem=problem, by_machine=label,
            by_teacher=tuple(self._commonest(valid) if valid else None for valid in by_teacher),
            said=tuple(vote.label for vote in votes),
            confidence=confidence, agreement=agreement, votes=len(own), reason=best.text("reason"),
            runner_up=best.text("runner_up"), model=best.outcome.model, request_id=best.outcome.request_id, cost_usd=cost,
        )  # fmt: skip

    def _problem(self, label: str, confidence: float, agreement: float) -> Problem | None:
        least, shared = self._labeller.min_confidence, self._labeller.min_agreement
        if label == NONE:
            return Problem("none_of_these", "the teacher says that no class fits")
        if shared is not None and agreement < shared:
            return _too_low("low_agreement", agreement, "min_agreement", shared)
        if least is not None and confidence < least:
            return _too_low("low_confidence", confidence, "min_confidence", least)
        return None

    def _commonest(self, votes: Sequence[_Vote]) -> str:
        """Most votes, then most confidence, then the order of the classes, or that of the votes where there are none."""
        counts = Counter(vote.label for vote in votes)
        sure = {label: sum(vote.confidence for vote in votes if vote.label == label) for label in counts}
        return min(counts, key=lambda label: (-counts[label], -sure[label], self._rank.get(label, 0)))

    def _cost(self, panel: Panel) -> float | None:
        costs = [_price(teacher, outcome) for teacher, own in zip(self._teachers, panel, strict=True) for outcome in own]
        known = [cost for cost in costs if cost is not None]
        return round(sum(known), 9) if len(known) == len(costs) else None

    def _over_budget(self, panel: Panel) -> bool:
        """Whether the sum passes the cap with this image, or has before: then nothing that follows is kept."""
        cap = self._labeller.max_cost_usd
        if cap is not None:
            self._spent_usd += self._new_cost(panel)
            # The first image without an answer was not admitted, and those that follow are no better.
            self.broke = self.broke or self._spent_usd > cap or not all(panel)
        return self.broke

    def _new_cost(self, panel: Panel) -> float:
        usd = 0.0
        for number, (teacher, own) in enumerate(zip(self._teachers, panel, strict=True)):
            for outcome in own:
                if (paid := (number, outcome.image, outcome.vote)) not in self._paid:
                    self._paid.add(paid)
                    usd += _price(teacher, outcome) or 0.0
        return usd


def _price(teacher: Teacher, outcome: Outcome) -> float | None:
    return None if teacher.price is None else cost_usd(outcome.usage, teacher.price)


def _too_low(reason: str, value: float, key: str, least: float) -> Problem:
    return Problem(reason, f"{value:.3g} is below {key} {least:g}")
