"""The comparison as one HTML file that needs nothing else, and as a few lines for the terminal.

Labels, answers and file names are data from outside: the template escapes all of it, and the page forbids itself scripts and
anything from the network.
"""

from __future__ import annotations

import base64
import io
import string
import tempfile
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment as Templates
from jinja2 import PackageLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image

from pocketvlm.artifacts.dataset import SPLITS, read_images
from pocketvlm.artifacts.open import open_store
from pocketvlm.compare.fields import field_rows
from pocketvlm.compare.flips import Against, Flip, against
from pocketvlm.compare.runs import Run, read_run
from pocketvlm.compare.settings import ABSENT, Row, number, numbers, settings_that_differ, versions_that_differ
from pocketvlm.environment import Environment
from pocketvlm.errors import UserError
from pocketvlm.report import charts

COMPARISONS = Path(".pocketvlm/comparisons")
"""Where pages go unless told otherwise, in the folder where the command runs."""
SHOWN = 24
"""Pictures of each group."""
PICTURE_PX = 160
"""Longest side of a picture."""
LONG_CHARACTERS = 40
"""Longer answers need more room beside each other."""
ANSWER_CHARACTERS = 400
"""Of an answer under a picture."""
PARITY = ("parity", "layout", "blind", "majority", "transformers", "base")
"""Keys of metrics.json whose numbers stand beside the types."""


def write_comparison(named: Sequence[str], environment: Environment, to: Path | None) -> tuple[Path, str]:
    """Compares runs, the first of which is the baseline; returns the page's path and a summary of a few lines.

    Each is named by its run file, its id or a release. The page goes to `to` or below COMPARISONS. Raises as `read_run` does, and
    UserError for less than two runs, or a file that cannot be written.
    """
    if not 2 <= len(named) <= len(string.ascii_uppercase):
        raise UserError(f"{len(named)} runs: name 2 to {len(string.ascii_uppercase)}, the baseline first")
    store = open_store(environment, read_only=True)
    runs = [read_run(store, name, letter) for name, letter in zip(named, string.ascii_uppercase, strict=False)]
    twice = [run.id for place, run in enumerate(runs) if run.id in (other.id for other in runs[:place])]
    if twice:
        raise UserError(f"run {twice[0]} is named twice; name runs that differ")
    compared = [against(runs[0], run) for run in runs[1:]]
    path = to or COMPARISONS / ("-".join(run.id for run in runs)[:200] + ".html")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(render_comparison(runs, compared, _pictures(runs[0], compared)), encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}); say another place with --to FILE") from error
    return path, summary(runs, compared)


def render_comparison(runs: Sequence[Run], compared: Sequence[Against], pictures: Mapping[str, bytes]) -> str:
    """The page as HTML. `pictures` are PNGs by sha256 of the original. Equal data give equal text."""
    templates = Templates(
        loader=PackageLoader("pocketvlm.compare", "."), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True, keep_trailing_newline=True,
    )  # fmt: skip
    types, rows = [compared[0].types[0], *(found.types[1] for found in compared)], _type_rows(runs)
    return templates.get_template("page.html.jinja").render(
        title=" against ".join(dict.fromkeys(str(run.recipe["name"]) for run in runs)), css=_css(), runs=runs, compared=compared,
        scale=_difference_scale(compared), difference_bar=charts.difference_bar, interval_bar=charts.interval_bar,
        settings=settings_that_differ(runs), versions=versions_that_differ(runs), absent=ABSENT, splits=_splits(runs),
        one_dataset=len({run.dataset.id for run in runs}) == 1, classes=_classes(runs), total=_total, count=_count,
        types=rows, answer_tokens=any(row["answer_tokens"] for row in rows), accuracy_scale=_accuracy_scale(runs),
        numbers=numbers(runs, types), parity=_parity(runs),
        compared_types=dict.fromkeys(types), galleries=[_gallery(found) for found in compared], shown=SHOWN,
        pictures={sha256: _data_uri(png) for sha256, png in pictures.items()}, share=_share, points=_points, number=number,
        p_value=_p_value, short=_short, fields=lambda flip: field_rows(runs[0].kind, flip.baseline.label, flip.answers),
    )  # fmt: skip


def summary(runs: Sequence[Run], compared: Sequence[Against]) -> str:
    """A few lines: accuracies, the difference on common images, and the keys that differ."""
    lines = [f"{run.letter}  {run.id}: {run.types[0]} {_share(run.metrics['types'][run.types[0]]['accuracy'])} of "
             f"{len(run.seen)} test images" for run in runs]  # fmt: skip
    for found in compared:
        if not found.images:
            lines.append(f"A and {found.run.letter} have no test image in common")
            continue
        low, high = found.interval
        lines.append(
            f"{found.run.letter} against A on {found.images} common images: {_points(found.difference)} points "
            f"({_points(low)} to {_points(high)}), only A right {len(found.only_baseline)}, only {found.run.letter} right "
            f"{len(found.only_run)}, p {_p_value(found.p_value)}"
        )
    keys = [row.key for row in settings_that_differ(runs)]
    return "\n".join([*lines, f"settings that differ: {', '.join(keys) or 'none'}"])


def _css() -> Markup:
    parts = (("pocketvlm.report", "report.css"), ("pocketvlm.compare", "page.css"))
    return Markup("\n".join(files(package).joinpath(name).read_text(encoding="utf-8") for package, name in parts))


def _pictures(baseline: Run, compared: Sequence[Against]) -> dict[str, bytes]:
    """Small pictures of the flips that are shown, out of the baseline's test shards."""
    wanted = {flip.baseline.sha256 for found in compared for _, flips in _groups(found) for flip in flips[:SHOWN]}
    if not wanted:
        return {}
    shards = [entry.name for entry in baseline.dataset.files if entry.name.startswith("test-")]
    pictures = {}
    with tempfile.TemporaryDirectory() as folder:
        for sha256, png in read_images(baseline.dataset.fetch(Path(folder), shards), "test", wanted):
            with Image.open(io.BytesIO(png)) as image:
                small = image.convert("RGB")
            small.thumbnail((PICTURE_PX, PICTURE_PX), Image.Resampling.LANCZOS)
            file = io.BytesIO()
            small.save(file, "PNG")
            pictures[sha256] = file.getvalue()
    return pictures


def _groups(found: Against) -> list[tuple[str, list[Flip]]]:
    letter = found.run.letter
    return [("Only A is right", found.only_baseline), (f"Only {letter} is right", found.only_run),
            ("Both are wrong, with different answers", found.both_wrong)]  # fmt: skip


def _gallery(found: Against) -> dict[str, Any]:
    groups = [(title, flips, any(len(text) > LONG_CHARACTERS for flip in flips for text in (flip.baseline.label, *flip.answers)))
              for title, flips in _groups(found)]  # fmt: skip
    return {"run": found.run, "both_right": found.both_right, "same_wrong": found.same_wrong, "groups": groups}


def _difference_scale(compared: Sequence[Against]) -> charts.Axis:
    """Of the bars of differences: 0 in the middle, all intervals inside."""
    reach = max((abs(end) for found in compared if found.images for end in found.interval), default=0.0)
    limit = charts.axis(0.0, max(reach, 0.01), wanted=2).high
    return charts.Axis(-limit, limit, (-limit, 0.0, limit))


def _accuracy_scale(runs: Sequence[Run]) -> charts.Axis:
    return charts.axis(min(pair["interval"][0] for run in runs for pair in run.metrics["types"].values()), 1.0, wanted=4)


def _splits(runs: Sequence[Run]) -> list[str]:
    return [split for split in SPLITS if any(split in run.dataset.facts.get("counts", {}) for run in runs)]


def _classes(runs: Sequence[Run]) -> list[str]:
    """Classes of all runs, in the order of the first that has them; none for tasks without."""
    found = dict.fromkeys(name for run in runs for counts in run.dataset.facts.get("counts", {}).values() for name in counts)
    order = [name for run in runs for name in run.metrics.get("classes", [])]
    return [name for name in dict.fromkeys([*order, *found]) if name in found] if order else []


def _count(run: Run, split: str, name: str) -> int:
    counts: dict[str, dict[str, int]] = run.dataset.facts.get("counts", {})
    return counts.get(split, {}).get(name, 0)


def _total(run: Run, split: str) -> int:
    counts: dict[str, dict[str, int]] = run.dataset.facts.get("counts", {})
    return sum(counts.get(split, {}).values())


def _type_rows(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Every type of every run, equal types beside each other."""
    names = dict.fromkeys(name for run in runs for name in run.types)
    return [_type_row(run, name) for name in names for run in runs if name in run.types]


def _type_row(run: Run, name: str) -> dict[str, Any]:
    pair = run.metrics["types"][name]
    sizes = [run.sizes_mb.get(pair[part]) for part in ("text", "mmproj")]
    tokens = (pair.get("tokens") or {}).get("median")
    ms = run.latency.get(name, {}).get("total_ms_median")
    return {
        "run": run, "name": name, "shipped": pair["shipped"], "accuracy": pair["accuracy"], "interval": pair["interval"],
        "size": f"{sum(size for size in sizes if size):.1f}" if all(sizes) else "",
        "agreement": _share(pair["agreement"]) if pair.get("agreement") is not None else "",
        "prompt_tokens": str(pair["prompt_tokens"][1]) if pair.get("prompt_tokens") else "",
        "answer_tokens": number(tokens) if isinstance(tokens, int | float) else "", "ms": f"{ms:.3g}" if ms else "",
    }  # fmt: skip


def _parity(runs: Sequence[Run]) -> list[Row]:
    rows = []
    for key in PARITY:
        found = [run.metrics.get(key) for run in runs]
        if all(value is None for value in found):
            continue
        name = {"parity": "parity, max nats", "layout": "layout, max nats", "blind": "accuracy on grey images",
                "majority": "the most frequent class", "transformers": "accuracy by transformers",
                "base": "accuracy of the base, before training"}[key]  # fmt: skip
        rows.append(Row(name, [_of_parity(value) for value in found]))
    return rows


def _of_parity(value: Any) -> str:
    if isinstance(value, Mapping):
        value = value.get("max_nats", value.get("accuracy"))
    return number(value) if isinstance(value, int | float) else ""


def _data_uri(picture: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(picture).decode()


def _share(value: float) -> str:
    return f"{100 * value:.1f} %"


def _points(value: float) -> str:
    """A difference of shares in percentage points, with its sign."""
    text = f"{100 * value:+.1f}"
    return "0.0" if text in ("+0.0", "-0.0") else text.replace("-", "\u2212")


def _p_value(value: float) -> str:
    return f"{value:.3f}" if value >= 0.001 else "< 0.001"


def _short(text: str) -> str:
    return text if len(text) <= ANSWER_CHARACTERS else f"{text[:ANSWER_CHARACTERS]} ..."
