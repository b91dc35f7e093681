"""Another finished run beside this one, on the test images that both were measured on: what the other answer buys and costs."""

from __future__ import annotations

from dataclasses import dataclass

from pocketvlm.artifacts.artifact import Artifact
from pocketvlm.artifacts.evaluated import report_of, run_named
from pocketvlm.artifacts.store import Store
from pocketvlm.errors import UserError
from pocketvlm.intervals import mcnemar, paired_difference
from pocketvlm.report.data import Beside, Side
from pocketvlm.report.results import Metrics, Prediction


@dataclass(frozen=True)
class Other:
    """The other run."""

    run: str
    report: Artifact
    metrics: Metrics

    @property
    def type(self) -> str:
        """Its first shipped type."""
        return self.metrics.order[0]

    def latency(self) -> dict[str, float]:
        """Of its type, as its evaluator measured it."""
        found: dict[str, float] = self.report.measurements().get("latency", {}).get(self.type, {})
        return found

    def compare(self, run: str, metrics: Metrics, report: Artifact) -> Beside:
        """This run beside it. Raises UserError when no test image is in both with one label."""
        own_type = metrics.order[0]
        own, other = _right(report, own_type), _right(self.report, self.type)
        common = [key for key in own if key in other]
        if not common:
            raise UserError(f"run.evaluator.beside: no test image of this run is one of {self.run} with the same label; "
                            "both must be trained on the same data and split")  # fmt: skip
        only_own = sum(own[key] and not other[key] for key in common)
        only_other = sum(other[key] and not own[key] for key in common)
        both = sum(own[key] and other[key] for key in common)
        return Beside(
            _side(run, metrics, own_type, both, only_own, len(common)),
            _side(self.run, self.metrics, self.type, both, only_other, len(common)), len(common),
            paired_difference(only_other, only_own, len(common)), mcnemar(only_own, only_other),
        )  # fmt: skip


def find_other(store: Store, named: str) -> Other:
    """The run of this id, or that a release of this name was made by. Raises UserError for one that has not been evaluated."""
    run = run_named(store, named)
    if run is None:
        raise UserError(f"run.evaluator.beside: {named} is neither a finished run nor a release of {store.url}; run that run "
                        "file to its end first, or remove the key")
    report = report_of(store, run)
    if report is None:
        raise UserError(f"run.evaluator.beside: run {run} has no report in {store.url}; run its run file to its end first")
    try:
        metrics = Metrics.model_validate_json(report.read("metrics.json"))
    except ValueError as error:
        raise UserError(f"run.evaluator.beside: run {run} was measured by another version of PocketVLM, whose numbers this one "
                        "does not read; run its run file again") from error  # fmt: skip
    return Other(run, report, metrics)


def _right(report: Artifact, kind: str) -> dict[tuple[str, str], bool]:
    """(sha256, label) of each test image -> whether the type answered rightly."""
    rows = [Prediction.model_validate_json(line) for line in report.read("predictions.jsonl").splitlines()]
    return {(row.sha256, row.label): row.labels[kind] == row.label for row in rows}


def _side(run: str, metrics: Metrics, kind: str, both: int, only: int, images: int) -> Side:
    pair = metrics.types[kind]
    tokens = pair.tokens.median if pair.tokens else None
    return Side(run, kind, metrics.answer, round((both + only) / images, 6), only, pair.prompt_tokens[1], tokens)
