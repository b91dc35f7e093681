"""Renders `report.html`, one file that needs nothing else, and `MODEL_CARD.md`.

Class names, file names and details of broken images are data from outside: the templates escape all of it, and the
page forbids itself scripts and anything from the network.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from pocketvlm.report import charts
from pocketvlm.report.data import ReportData
from pocketvlm.report.results import FieldRow, GateResult, Measured, PairResult

GATE_MEANINGS: Mapping[str, str] = {
    "min_accuracy": "share of right answers on the test images",
    "max_drop": "accuracy of the merged model by transformers, minus that of the pair",
    "min_agreement": "share of answers equal to those by transformers",
    "max_parity_nats": "log-probability of the likeliest token at one place of the answer, from that by transformers",
    "layout_nats": "the same for all tokens there, with the weights in float32: pixels, tokens and graph",
    "max_blind_accuracy": "accuracy on grey images; high means that images get lost",
    "min_sight": "share of the errors on grey images that seeing removes; 0 means that images are not looked at",
    "max_expected_calibration_error": "distance of confidence from accuracy, after the temperature",
    "prompt_ids_equal": "the prompt's text has the token ids of training",
    "prompt_tokens_wrong": "images whose prompt has another number of tokens than in training",
    "answers_outside": "answers that are no class",
    "min_valid": "share of answers inside the grammar that can be read",
    "min_valid_free": "the same without the grammar",
    "min_field_accuracy": "share of right values of the field that has the fewest",
    "min_list_f1": "F1 of the texts of all lists together, normalised",
}
UNREAD = "unreadable"
"""Stands for an answer that is none of the task's."""


def render_report(data: ReportData) -> str:
    """The report as HTML. Equal data give equal text."""
    return _templates(html=True).get_template("report.html.jinja").render(
        data=data, metrics=data.metrics, css=_css(), gate_rows=_gate_rows(data), gate_columns=_gate_columns(data),
        meanings=GATE_MEANINGS, main=data.metrics.types[data.shipped[0]], main_name=data.shipped[0],
        rows=_answerers(data), scale=_scale(data), interval_bar=charts.interval_bar, curves=_curves(data),
        reliability=charts.reliability_chart, picture=_data_uri, share=_share, number=_number, gate_value=_gate_value,
        training=_training(data), differences=_differences, unread=UNREAD, base_fields=_by_name(data.metrics.base),
    )  # fmt: skip


def render_card(data: ReportData) -> str:
    """The model card as Markdown, without times."""
    return _templates(html=False).get_template("model_card.md.jinja").render(
        data=data, metrics=data.metrics, share=_share, number=_number, cell=_markdown_cell,
        base_fields=_by_name(data.metrics.base),
    )


@cache
def _templates(*, html: bool) -> Environment:
    return Environment(
        loader=PackageLoader("pocketvlm.report", "."), autoescape=html, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True, keep_trailing_newline=True,
    )  # fmt: skip


def _css() -> Markup:
    return Markup(files("pocketvlm.report").joinpath("report.css").read_text(encoding="utf-8"))


def _gate_columns(data: ReportData) -> list[str]:
    named = {gate.type for gate in data.gates}
    return [name for name in data.metrics.order if name in named]


def _gate_rows(data: ReportData) -> list[tuple[str, str, float, dict[str, GateResult]]]:
    """(name, rule, limit, type -> result) for each gate, in the order of GATE_MEANINGS."""
    rows: dict[str, dict[str, GateResult]] = {name: {} for name in GATE_MEANINGS}
    for gate in data.gates:
        rows[gate.name][gate.type] = gate
    return [(name, *_rule(cells), cells) for name, cells in rows.items() if cells]


def _rule(cells: dict[str, GateResult]) -> tuple[str, float]:
    gate = next(iter(cells.values()))
    return gate.rule, gate.limit


@dataclass(frozen=True)
class Answerer:
    """A row of the tables: who answered, and what is said of that beside the name."""

    name: str
    hint: str
    found: Measured
    pair: PairResult | None
    latency: Mapping[str, float] | None


def _answerers(data: ReportData) -> list[Answerer]:
    """Everybody who answered, shipped types first."""
    metrics, times = data.metrics, data.times.latency if data.times else {}
    pairs = [(name, metrics.types[name]) for name in metrics.order]
    rows = [Answerer(name, "" if pair.shipped else "for parity", pair, pair, times.get(name)) for name, pair in pairs]
    free = ", freely" if metrics.transformers.written else ""
    text, mmproj = metrics.base_types
    base = Answerer("base", f"before training; {text}, mmproj {mmproj}", metrics.base, None, times.get("base"))
    return [*rows, Answerer("transformers", f"float32{free}", metrics.transformers, None, None), base]


def _by_name(found: Measured) -> dict[str, FieldRow]:
    return {row.name: row for row in found.fields}


def _differences(label: str, answer: str | None) -> list[tuple[str, str, str]]:
    """(field, what was answered, what is labelled) where the two differ; of answers that are JSON objects with the same keys."""
    if answer is None:
        return []
    said, right = json.loads(answer), json.loads(label)
    return [(name, _plain(said[name]), _plain(right[name])) for name in right if said[name] != right[name]]


def _plain(value: Any) -> str:
    return (", ".join(value) or "nothing") if isinstance(value, list) else str(value)


def _scale(data: ReportData) -> charts.Axis:
    """Of the accuracy bars: wide enough for all trained answerers, so that their intervals can be told apart."""
    trained = [*data.metrics.types.values(), data.metrics.transformers]
    return charts.axis(min(found.interval[0] for found in trained), 1.0, wanted=4)


def _curves(data: ReportData) -> list[tuple[str, Markup]]:
    """(title, chart) of loss and validation accuracy over epochs; phases follow each other on one axis."""
    starts: dict[int, float] = {}
    reached = 0.0
    for point in data.curve:
        starts.setdefault(point.phase, reached)
        reached = max(reached, starts[point.phase] + point.epoch)

    def of(key: str) -> list[charts.Point]:
        values = [(starts[p.phase] + p.epoch, getattr(p, key)) for p in data.curve]
        return [(x, y) for x, y in values if y is not None]

    loss = [charts.Series("training", of("loss"), "c1"), charts.Series("validation", of("validation_loss"), "c2")]
    accuracy = [charts.Series("validation accuracy", of("validation_accuracy"), "c2")]
    found = [
        ("Loss, nats per answer token", charts.line_chart("Loss", _drawn(loss), x_label="epochs", low=0.0)),
        ("Validation accuracy", charts.line_chart("Validation accuracy", _drawn(accuracy), x_label="epochs", high=1.0)),
    ]
    return [(title, chart) for title, chart in found if chart]


def _drawn(series: list[charts.Series]) -> list[charts.Series]:
    return [line for line in series if line.points]


def _gate_value(gate: str, value: float) -> str:
    """A number of a gate; `prompt_ids_equal` is a yes or no."""
    if gate == "prompt_ids_equal":
        return "yes" if value else "no"
    return f"{value:.4f}".replace("-", "\u2212") if value != int(value) else _number(value)


def _training(data: ReportData) -> list[tuple[str, str]]:
    """Rate and memory of training, where they were measured."""
    measured: Mapping[str, Any] = data.times.stages.get("trainer", {}) if data.times else {}
    facts = []
    seconds = measured.get("seconds")
    if isinstance(seconds, Mapping) and "training" in seconds:
        facts.append(("training", f"{seconds['training']:.1f} s"))
    rates = sorted(row["samples_per_s"] for row in measured.get("log", []) if "samples_per_s" in row)
    if rates:
        facts.append(("median rate", f"{rates[len(rates) // 2]:.0f} samples/s"))
    facts += [(key.replace("_mb", "").replace("_", " "), f"{value:,.0f} MB") for key, value in sorted(measured.items())
              if key.endswith("_mb") and isinstance(value, int | float)]  # fmt: skip
    if "device" in measured:
        facts.append(("device", str(measured["device"])))
    return facts


def _data_uri(picture: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(picture).decode()


def _share(value: float) -> str:
    """A share as per cent."""
    return f"{100 * value:.1f} %"


def _number(value: float) -> str:
    """Three digits of a large number, four behind the point of a small one; whole numbers as they are."""
    if value == int(value):
        return f"{int(value):,}"
    return f"{value:.3g}" if abs(value) >= 1 else f"{value:.4f}".rstrip("0")


def _markdown_cell(text: object) -> str:
    """Text that neither ends a table cell nor starts a tag."""
    plain = " ".join(str(text).split())
    return plain.replace("&", "&amp;").replace("<", "&lt;").replace("|", "\\|").replace("`", "'")
