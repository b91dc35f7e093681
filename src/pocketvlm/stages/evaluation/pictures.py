"""Which test images go into the report and the release, and how large."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from pocketvlm.artifacts.dataset import Example
from pocketvlm.artifacts.manifest import canonical_json
from pocketvlm.report.results import Prediction
from pocketvlm.student import pixels

WRONG_SHOWN = 24
"""Wrong answers with their picture in the report."""
PICTURE_PX = 160
"""Longest side of a picture in the report; the golden images are whole."""


def wrong(predictions: Sequence[Prediction], shipped: Sequence[str]) -> list[int]:
    """Places of the images that a shipped type got wrong; where the first type was surest comes first."""
    places = [i for i, p in enumerate(predictions) if any(p.labels[name] != p.label for name in shipped)]
    return sorted(places, key=lambda i: (-predictions[i].confidences[shipped[0]], predictions[i].sha256))


def golden(predictions: Sequence[Prediction], shipped: Sequence[str], classes: Sequence[str], count: int) -> list[int]:
    """Places of the images that are released for replaying: class after class, those first that every type got right.

    They test a runtime, not the model: an answer near a tie may differ between two sound CPUs, so in each class (where there
    are classes) the image comes first on which the least sure type is surest.
    """

    def rank(place: int) -> tuple[bool, float, str]:
        prediction = predictions[place]
        right = all(prediction.labels[name] == prediction.label for name in shipped)
        return not right, -min(prediction.confidences[name] for name in shipped), prediction.sha256

    groups = [[i for i, p in enumerate(predictions) if p.label == name] for name in classes] or [list(range(len(predictions)))]
    queues = [sorted(group, key=rank) for group in groups]
    chosen: list[int] = []
    while len(chosen) < count and any(queues):
        chosen += [queue.pop(0) for queue in queues if queue]
    return chosen[:count]


def picture_name(prediction: Prediction) -> str:
    """File name of the picture of a test image in a report artifact."""
    return f"pictures/{prediction.sha256[:16]}.png"


def write_pictures(folder: Path, examples: Sequence[Example], predictions: Sequence[Prediction], shipped: Sequence[str]) -> None:
    """The wrong answers' images, at most WRONG_SHOWN of them, small."""
    for place in wrong(predictions, shipped)[:WRONG_SHOWN]:
        image = Image.open(io.BytesIO(examples[place].image_png)).convert("RGB")
        image.thumbnail((PICTURE_PX, PICTURE_PX), Image.Resampling.LANCZOS)
        path = folder / picture_name(predictions[place])
        path.parent.mkdir(exist_ok=True)
        image.save(path, "PNG")


def write_canvas(folder: Path, canvas_px: int) -> None:
    """`golden/canvas-original.png`, and `golden/canvas.png`, which an app must make of it: see docs/release.md."""
    for name, image in zip(("canvas-original", "canvas"), pixels.canvas_example(canvas_px), strict=True):
        image.save(folder / "golden" / f"{name}.png", "PNG")


def write_golden(
    folder: Path, examples: Sequence[Example], predictions: Sequence[Prediction], shipped: Sequence[str], places: Sequence[int]
) -> None:
    """`golden/<sha256>.png` with the bytes that were measured, and `golden/golden.json` with the answers to them."""
    (folder / "golden").mkdir()
    rows: list[dict[str, Any]] = []
    for place in places:
        prediction = predictions[place]
        name = f"{prediction.sha256[:16]}.png"
        (folder / "golden" / name).write_bytes(examples[place].image_png)
        answers = {kind: {"answer": prediction.answers[kind], "confidence": prediction.confidences[kind]} for kind in shipped}
        rows.append({"file": name, "label": prediction.label, "types": answers})
    (folder / "golden" / "golden.json").write_bytes(canonical_json({"format": 1, "images": rows}))
