"""The page on which a person checks labels: one file that needs nothing else.

Class names, reasons and authors are data from outside. They reach the page as JSON in which no tag can begin, and its script puts
them there as text. The page forbids itself the network, and every script and style but its own, which it names by their hashes.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment as Templates
from jinja2 import PackageLoader, StrictUndefined
from markupsafe import Markup

from pocketvlm.artifacts.corrections import FORMAT
from pocketvlm.environment import Environment
from pocketvlm.errors import UserError
from pocketvlm.review.sample import Item, Sample, take_sample
from pocketvlm.run_file import RunFile

REVIEWS = Path(".pocketvlm/reviews")
"""Where pages go unless told otherwise, in the folder where the command runs."""
IMAGES = 100
"""Shown unless told otherwise: a quarter of an hour for one person."""
STYLES = (("pocketvlm.report", "report.css"), ("pocketvlm.review", "page.css"))
"""The report's look, and what only this page has."""
SCRIPTS = tuple(("pocketvlm.review", f"{name}.js") for name in ("decisions", "fields", "cards", "page"))


def write_review(run_file: RunFile, environment: Environment, to: Path | None, *, images: int = IMAGES) -> Path:
    """Writes the page for `images` images of the run's dataset, to `to` or below REVIEWS; returns the path.

    Raises as `take_sample` does, and UserError when the file cannot be written.
    """
    sample = take_sample(run_file, environment, images)
    path = to or REVIEWS / f"{sample.run}.html"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(render_page(sample), encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}); say another place with `pocketvlm review RUN --to FILE`"
                        ) from error  # fmt: skip
    return path


def render_page(sample: Sample) -> str:
    """The page as HTML. Equal samples give equal text."""
    style, script = _joined(STYLES), _joined(SCRIPTS)
    templates = Templates(
        loader=PackageLoader("pocketvlm.review", "."), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True, keep_trailing_newline=True,
    )  # fmt: skip
    return templates.get_template("page.html.jinja").render(
        sample=sample, style=style, script=script, style_hash=_csp_hash(style), script_hash=_csp_hash(script),
        data=script_json(_data(sample)),
    )  # fmt: skip


def script_json(data: Any) -> Markup:
    """JSON that an HTML parser takes for text, whatever is in it: no `<` can close the element or open a comment."""
    text = json.dumps(data, ensure_ascii=True, separators=(",", ":"))
    return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))


def _data(sample: Sample) -> dict[str, Any]:
    return {
        "format": FORMAT, "name": sample.name, "run": sample.run, "dataset": sample.dataset, "classes": list(sample.classes),
        "fields": [
            {"name": name, "type": field.type, "values": field.values, "max_length": field.max_length,
             "max_items": field.max_items}
            for name, field in sample.fields.items()
        ],
        "votes": sample.votes, "items": [_item(item) for item in sample.items],
    }  # fmt: skip


def _item(item: Item) -> dict[str, Any]:
    row = item.row
    return {
        "sha256": row.sha256, "source_id": row.source_id, "label": row.label, "by": row.teacher_model, "split": item.split,
        "confidence": row.teacher_confidence, "votes": row.teacher_votes, "reason": row.teacher_reason, "author": row.author,
        # A dataset need not have this column.
        "runner_up": getattr(row, "teacher_runner_up", None),
        "licence": row.licence, "url": row.url, "picture": item.picture,
    }  # fmt: skip


def _joined(parts: Sequence[tuple[str, str]]) -> Markup:
    return Markup("\n".join(files(package).joinpath(name).read_text(encoding="utf-8") for package, name in parts))


def _csp_hash(text: str) -> str:
    # The browser hashes all that stands between the tags, and reads CRLF as LF.
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
