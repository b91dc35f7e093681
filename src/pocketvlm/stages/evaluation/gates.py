"""The gates: what a model must reach to be released, decided from the numbers alone.

Some can be set in the run file (`evaluator.gates`); the others hold always, because a model that fails them was not
measured on what it was trained for.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pocketvlm.report.results import GateResult, Metrics, PairResult
from pocketvlm.run_file import Gates

BLIND_MARGIN = 0.15
"""Above the share of the most frequent class: default of `max_blind_accuracy`."""


PARITY_NATS = 0.01
"""Default of `max_parity_nats` for device-exact families."""


def decide(metrics: Metrics, gates: Gates) -> list[GateResult]:
    """Every gate with its numbers, passed or not."""
    results = list(_of_all(metrics, gates))
    for name in metrics.order:
        results += _always(name, metrics.types[name])
    for name in metrics.order:
        if metrics.types[name].shipped:
            results += [*_of_type(name, metrics.types[name], metrics, gates), *_of_written(name, metrics.types[name], gates)]
    return results


def parity_limit(metrics: Metrics, gates: Gates) -> float | None:
    """The run file's, or the family's; None: parity is stated and refuses nothing."""
    return gates.max_parity_nats if gates.max_parity_nats is not None else PARITY_NATS if metrics.device_exact else None


def _of_all(metrics: Metrics, gates: Gates) -> Iterator[GateResult]:
    pair, limit = metrics.parity.pair, parity_limit(metrics, gates)
    if limit is not None:
        yield _at_most("max_parity_nats", pair, metrics.parity.max_nats, limit)
        yield _at_most("layout_nats", pair, metrics.layout.max_nats, limit)


def _always(name: str, pair: PairResult) -> Iterator[GateResult]:
    yield _at_least("prompt_ids_equal", name, float(pair.prompt_ids_equal), 1)
    yield _at_most("prompt_tokens_wrong", name, pair.prompt_tokens_wrong, 0)
    if pair.written is None:
        yield _at_most("answers_outside", name, pair.outside, 0)


def _of_type(name: str, pair: PairResult, metrics: Metrics, gates: Gates) -> Iterator[GateResult]:
    yield _at_least("min_accuracy", name, pair.accuracy, gates.min_accuracy)
    if gates.max_drop is not None:
        yield _at_most("max_drop", name, metrics.transformers.accuracy - pair.accuracy, gates.max_drop)
    if gates.min_agreement is not None:
        yield _at_least("min_agreement", name, pair.agreement, gates.min_agreement)
    assert pair.blind is not None, "the blind control is run on every shipped pair"
    if (blind := _blind_limit(metrics, gates)) is not None:
        yield _at_most("max_blind_accuracy", name, pair.blind.accuracy, blind)
    if gates.min_sight is not None:
        yield _at_least("min_sight", name, sight(pair.accuracy, pair.blind.accuracy), gates.min_sight)
    if gates.max_expected_calibration_error is not None and pair.calibration_error_scaled is not None:
        yield _at_most(
            "max_expected_calibration_error", name, pair.calibration_error_scaled, gates.max_expected_calibration_error
        )


def _blind_limit(metrics: Metrics, gates: Gates) -> float | None:
    if gates.max_blind_accuracy is not None:
        return gates.max_blind_accuracy
    return None if metrics.majority is None else min(1.0, metrics.majority + BLIND_MARGIN)


def _of_written(name: str, pair: PairResult, gates: Gates) -> Iterator[GateResult]:
    """What is read of answers that are written out, and their fields."""
    if pair.written is not None and pair.written.valid is not None:
        yield _at_least("min_valid", name, pair.written.valid, 1.0 if gates.min_valid is None else gates.min_valid)
        if gates.min_valid_free is not None:
            yield _at_least("min_valid_free", name, pair.written.valid_free, gates.min_valid_free)
    if pair.fields and gates.min_field_accuracy is not None:
        yield _at_least("min_field_accuracy", name, min(row.accuracy for row in pair.fields), gates.min_field_accuracy)
    if pair.list_f1 is not None and gates.min_list_f1 is not None:
        yield _at_least("min_list_f1", name, pair.list_f1, gates.min_list_f1)


def sight(accuracy: float, blind: float) -> float:
    """Share of the errors on grey images that seeing the image removes; 0 where grey images leave none to remove."""
    return (accuracy - blind) / (1 - blind) if blind < 1 else 0.0


def _at_least(name: str, kind: str, measured: float, limit: float) -> GateResult:
    return GateResult(name=name, type=kind, measured=measured, limit=limit, rule="at least", passed=measured >= limit)


def _at_most(name: str, kind: str, measured: float, limit: float) -> GateResult:
    # A difference of two shares carries rounding of 1e-16; a limit of 0.02 means 0.02.
    return GateResult(name=name, type=kind, measured=measured, limit=limit, rule="at most", passed=measured <= limit + 1e-9)


def refusal(results: Sequence[GateResult]) -> str | None:
    """What a person reads of the failed gates, each with both numbers; None if all passed."""
    failed = [gate for gate in results if not gate.passed]
    if not failed:
        return None
    lines = [f"{len(failed)} of {len(results)} gates refuse the model; nothing was released, latest.json stays "
             "(`pocketvlm report RUN` shows it all):"]  # fmt: skip
    for gate in failed:
        lines.append(f"  {gate.name} of {gate.type}: measured {number(gate.measured)}, must be {gate.rule} {number(gate.limit)}")
    return "\n".join(lines)


def number(value: float) -> str:
    """Four digits behind the point; counts and 1.0 stay readable."""
    return f"{value:.4f}" if value != int(value) else f"{value:.1f}"
