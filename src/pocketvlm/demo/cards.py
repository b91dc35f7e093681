"""The HTML of the page's results. Everything that a model or a file says is escaped."""

from __future__ import annotations

import base64
import html
from collections.abc import Sequence

from pocketvlm.demo.columns import Column
from pocketvlm.predict.answer import Prediction, Value

WAITING = '<p class="pv-hint">Take or upload a picture, or choose one of the examples.</p>'


def seen(png: bytes, device: dict[str, int | None]) -> str:
    """The canvas, as the model gets it."""
    canvas_px = device.get("canvas_px")
    what = f"on the device's canvas: {canvas_px} by {canvas_px} px" if canvas_px else "as it is"
    data = base64.b64encode(png).decode()
    small = " pv-small" if canvas_px and canvas_px < 200 else ""
    return (f'<figure class="pv-seen{small}"><img alt="The picture {what}" src="data:image/png;base64,{data}">'
            f"<figcaption>What the models see, {what}</figcaption></figure>")  # fmt: skip


def problem(why: str) -> str:
    """Why a picture cannot be asked about."""
    return f'<p class="pv-problem" role="alert">{text(why)}</p>'


def cards(columns: Sequence[Column], rows: Sequence[Prediction | None], threshold: float) -> str:
    """A card for each model; None: it is still being asked."""
    inside = "".join(_card(column, row, threshold) for column, row in zip(columns, rows, strict=True))
    return f'<div class="pv-cards" aria-live="polite">{inside}</div>'


def _card(column: Column, row: Prediction | None, threshold: float) -> str:
    if column.model is None:
        body = f'<p class="pv-absent">Not here: {text(column.absent)}</p>'
    elif row is None:
        body = '<p class="pv-absent">is being asked …</p>'
    elif row.error is not None:
        body = f'<p class="pv-problem">{text(row.error)}</p>'
    else:
        body = _answered(row, threshold)
    return (f'<article class="pv-card" data-model="{text(column.name)}"><header><h3>{text(column.name)}</h3>'
            f"<p>{text(column.note)}</p></header>{body}</article>")  # fmt: skip


def _answered(row: Prediction, threshold: float) -> str:
    confidence = row.confidence or 0.0
    sure = row.best is not None and confidence >= threshold
    said = _said(row.text or "" if row.best is None else row.best)
    if sure:
        answer = f'<div class="pv-answer">{said}</div>'
    else:
        why = "would say" if row.best is not None else "no answer of the task:"
        answer = f'<div class="pv-answer pv-unsure">?</div><div class="pv-would">{why} {said}</div>'
    reason = f'<p class="pv-reason">{text(row.reason)}</p>' if row.reason else ""
    bar = (f'<div class="pv-bar" role="img" aria-label="confidence {confidence:.0%}, threshold {threshold:.0%}">'
           f'<i style="width:{100 * confidence:.1f}%"></i><b style="left:{100 * threshold:.1f}%"></b></div>')  # fmt: skip
    numbers = (f'<dl class="pv-numbers"><div><dt>confidence</dt><dd class="pv-confidence">{100 * confidence:.1f} %</dd></div>'
               f'<div><dt>time</dt><dd class="pv-ms">{row.ms or 0:.0f} ms</dd></div></dl>')  # fmt: skip
    return answer + reason + bar + numbers


def _said(value: Value) -> str:
    if isinstance(value, str):
        return f"<span>{text(value)}</span>"
    lines = (f"<div><dt>{text(name)}</dt><dd>{text(_item(item))}</dd></div>" for name, item in value.items())
    return f'<dl class="pv-fields">{"".join(lines)}</dl>'


def _item(item: object) -> str:
    return ", ".join(map(str, item)) or "none" if isinstance(item, list) else str(item)


def text(raw: str) -> str:
    """Escaped for HTML, and for Gradio, which fills in `${...}` of what it shows."""
    return html.escape(raw).replace("$", "&#36;")
