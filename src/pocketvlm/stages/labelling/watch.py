"""What a person sees of a labeller: images that are through, what was answered and what it cost, what is waited for; and the
sums at its end."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from pocketvlm.progress import Number, Progress
from pocketvlm.run_file import Labeller
from pocketvlm.teacher.answers import Client

LOOK_EVERY_S = 0.25
"""Between two looks at teachers that are waited for."""
WORTH_SAYING_S = 5.0
"""A shorter wait for quota is the even pace of the calls."""


class Watch:
    """The line of progress. One thread uses it, while the teachers count in theirs."""

    def __init__(self, progress: Progress, total: int, clients: Sequence[Client], votes: Sequence[int], priced: bool) -> None:
        """`total` images; without clients, an image that is prepared is through. `votes` of each client."""
        self._progress, self._total = progress, total
        self._clients, self._votes, self._priced = clients, votes, priced
        self._prepared = 0
        self._shown = self._waiting = 0
        """Images that were given to the teachers, and of those the ones in pieces that are not settled."""
        self._refused: Counter[str] = Counter()
        self._resumes_at_s = 0.0
        self._said: object = None

    def prepared(self, done: int, refused: str | None) -> None:
        """So many images of the share are prepared; the last one is shown to the teachers, or `refused` for a reason."""
        self._prepared = done
        if refused is not None:
            self._refused[refused] += 1
        elif self._clients:
            self._shown += 1
            self._waiting += 1
        self.tell()

    def settled(self, images: int) -> None:
        """So many more of those that were shown need not be waited for."""
        self._waiting -= images
        self.tell()

    def tell(self) -> None:
        """Says what has changed, and nothing if nothing has: a batch may take a day."""
        stats = [client.stats for client in self._clients]
        answered = {"teacher": sum(one.outcomes for one in stats), "store": sum(one.cached for one in stats)}
        retries, usd = sum(one.retries for one in stats), sum(one.spent_usd for one in stats)
        self._tell_pause()
        said = (self._prepared, self._waiting, answered, retries, usd)
        if said == self._said:
            return
        self._said = said
        numbers: dict[str, Number] = {"quarantined": self._refused}
        if self._clients:
            numbers["answered"] = answered
            if answered["store"]:
                numbers["of them before"] = str(answered["store"])
            numbers["in flight"] = str(sum(one.in_flight for one in stats))
            if retries:
                numbers["retries"] = retries
            if self._priced:
                numbers["cost USD"] = usd
        self._progress.step(self._through(), self._total, "images", unseen={"prepared": self._prepared}, **numbers)

    def _through(self) -> int:
        """Images of which nothing is missing. One whose bytes were asked about already counts when its piece is settled."""
        if not self._clients:
            return self._prepared
        answered = min((c.stats.outcomes + c.stats.cached) // votes for c, votes in zip(self._clients, self._votes, strict=True))
        return self._prepared - min(max(0, self._shown - answered), self._waiting)

    def _tell_pause(self) -> None:
        """A line of its own: while nothing starts, nothing changes."""
        wait_s = max((client.wait_s() for client in self._clients), default=0.0)
        resumes_at_s = time.time() + wait_s
        if wait_s < WORTH_SAYING_S or abs(resumes_at_s - self._resumes_at_s) < WORTH_SAYING_S:
            return
        self._resumes_at_s = resumes_at_s
        until = time.strftime("%H:%M:%S", time.localtime(resumes_at_s))
        self._progress.line(f"waiting for the teacher's quota, until {until}")


def label_lines(labeller: Labeller, counts: Mapping[str, Mapping[str, int]]) -> list[str]:
    """How many images each class got; `counts` by split and class, or by split as `images` where there are no classes."""
    by_class: Counter[str] = Counter()
    for of_split in counts.values():
        by_class.update(of_split)
    lines = ["labels: " + ", ".join(f"{name} {number}" for name, number in by_class.items())]
    wanted = labeller.per_class
    if wanted is not None and (short := [name for name, number in by_class.items() if number < wanted]):
        lines.append(f"fewer than per_class {wanted}: {', '.join(short)}")
    return lines


def cost_lines(costs: Mapping[str, Any]) -> list[str]:
    """What the answers have cost, whoever paid for them; `costs` as in the run's record."""
    lines = [
        f"teacher {one['model']}: {one.get('calls', 0):,} calls, {one.get('input_tokens', 0):,} tokens in and "
        f"{one.get('output_tokens', 0):,} out for the images that were looked at"
        for one in costs["teachers"]
    ]
    if costs["usd"] is not None:
        each = costs["usd_per_kept_label"]
        kept = "" if each is None else f", {each:.3g} for each label that is kept"
        lines.append(f"{costs['usd']:.4g} US dollars for all answers{kept}; earlier runs and images asked ahead are included")
    return lines
