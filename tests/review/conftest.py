"""Runs whose labeller has finished, without a labeller: a dataset in a store, and the record that leads to it."""

from __future__ import annotations

import hashlib
import io
import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pocketvlm.artifacts.artifact import publish
from pocketvlm.artifacts.dataset import SPLITS, Row, write_split
from pocketvlm.artifacts.folder import FolderStore
from pocketvlm.artifacts.run_record import StageRecord, change_record, run_id
from pocketvlm.environment import Environment
from pocketvlm.run_file import RunFile, check_run_file


def picture(seed: int, side_px: int) -> bytes:
    """A blurred landscape of its own colours: photograph enough for the eye and for a JPEG."""
    rng = np.random.default_rng(seed)
    small = rng.integers(20, 235, (5, 5, 3), dtype=np.uint8)
    small[3:] //= 2
    image = Image.fromarray(small).resize((side_px, side_px), Image.Resampling.BICUBIC)
    if side_px >= 96:
        noise_HWC = rng.integers(-9, 10, (side_px, side_px, 3))
        image = Image.fromarray((np.asarray(image).astype(int) + noise_HWC).clip(0, 255).astype(np.uint8))
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()


def row(number: int, label: str, **known: Any) -> Row:
    """What a labeller knows of an image; its sha256 comes from its number."""
    values: dict[str, Any] = {
        "label": label, "answer": label, "question": "Which?", "sha256": hashlib.sha256(str(number).encode()).hexdigest(),
        "phash": "0" * 16, "source": "folder", "source_id": f"{label}/{number:04d}.jpg", "teacher_model": "gpt-4o",
        "teacher_confidence": 0.9, "teacher_votes": 3, **known,
    }  # fmt: skip
    return Row(**values)


@dataclass(frozen=True)
class Labelled:
    """A run file, and the environment with the store of its dataset."""

    run_file: RunFile
    environment: Environment
    dataset: str
    """Id."""
    run: str
    rows: dict[str, Row] = field(default_factory=dict)
    """By sha256."""


MakeLabelled = Callable[..., Labelled]


@pytest.fixture
def make_labelled(tmp_path: Path) -> MakeLabelled:
    """`make_labelled(rows, classes)`: the rows are dealt to the splits, two of three to train; each has a picture."""

    def make(
        rows: list[Row], classes: list[str], *, side_px: int = 32, votes: int = 3, finished: bool = True,
        task: dict[str, Any] | None = None,
    ) -> Labelled:
        content = {"run": {
            "name": "elements", "student": {"model": "tiny"},
            "task": task or {"classes": dict.fromkeys(classes, ""), "question": "Which?"},
            "labeller": {"source": {"kind": "folder", "path": "images"}, "teacher": {"model": "gpt-4o", "votes": votes}},
            "trainer": {"phases": [{"method": "full"}]},
        }}  # fmt: skip
        run_file = check_run_file(content, tmp_path / "run.yaml")
        (tmp_path / "run.yaml").write_text(json.dumps(content))
        place = Path(tempfile.mkdtemp(dir=tmp_path))
        store, id, folder = FolderStore(place / "store"), "0123456789abcdef", place / "dataset"
        folder.mkdir()
        for turn, split in enumerate(SPLITS):
            own = [item for number, item in enumerate(rows) if (0, 0, 0, 0, 1, 2)[number % 6] == turn]
            pngs = [picture(int(item.sha256[:8], 16), side_px) for item in own]
            write_split(folder, split, own, [len(png) for png in pngs], iter(pngs), classes)
        run = run_id(run_file.run)
        if finished:
            publish(store, "datasets", id, folder, inputs={}, settings={}, facts={"images_used": len(rows)})
        record = StageRecord(stage="labeller", kind="datasets", id=id, status="done" if finished else "running", started="now")
        change_record(store, run, "labeller", lambda _: record)
        environment = Environment(store=str(place / "store"), scratch=tmp_path / "scratch")
        return Labelled(run_file, environment, id, run, {item.sha256: item for item in rows})

    return make


ELEMENTS = ["water", "land", "fire", "wood", "metal"]


@pytest.fixture
def elements(make_labelled: MakeLabelled) -> Labelled:
    """Thirty images of five classes; the higher the number, the surer the teacher."""
    rows = [
        row(number, ELEMENTS[number % 5], teacher_confidence=0.4 + number / 50, teacher_votes=2 + number % 2,
            teacher_reason=f"Image {number}: what one sees is mostly {ELEMENTS[number % 5]}.", author="A. Painter",
            licence="CC-BY-4.0", url=f"https://images.invalid/{number}")
        for number in range(30)
    ]  # fmt: skip
    return make_labelled(rows, ELEMENTS)


PLATE = '{"is_food":1,"title":"apple %d","items":["apple","<b>"],"hot":false}'
PLATES: dict[str, Any] = {
    "kind": "extract", "question": "What food?",
    "fields": [
        {"is_food": {"type": "integer", "values": [0, 1], "description": ""}},
        {"title": {"type": "string", "max_length": 20, "description": ""}},
        {"items": {"type": "list", "max_items": 3, "description": ""}}, {"hot": {"type": "boolean", "description": ""}},
    ],
}  # fmt: skip


@pytest.fixture
def plates(make_labelled: MakeLabelled) -> Labelled:
    """Twelve images whose labels are fields; the higher the number, the surer the teacher."""
    rows = [row(number, PLATE % number, source_id=f"{number}.jpg", teacher_confidence=0.4 + number / 50) for number in range(12)]
    return make_labelled(rows, [], task=PLATES)


@pytest.fixture
def new_row() -> Callable[..., Row]:
    """`new_row(number, label, **columns)`."""
    return row


HOSTILE_CLASSES = ["a & b", "ما هذا؟", "'; alert(1); '", "&lt;b&gt; `${1}`", "\u202egnp.exe", "🔥 __proto__"]
HOSTILE = [
    "</script><script>document.title='owned'</script>", "<!--<script>", "]]></style><img src=x onerror=document.title='owned'>",
    '"onfocus="document.title=1" autofocus x="', "\u202eRTL override \u2028 line \u2029 paragraph",
    "{{ 7*7 }} {% raw %} ${7*7} \\u003c/script>", "تصنيف هذه الصورة", "👩‍👩‍👧‍👦 emoji 🔥", "\x00\x1b[31m null", "x" * 5000,
]  # fmt: skip


@pytest.fixture
def hostile(make_labelled: MakeLabelled) -> Labelled:
    """Names, reasons, authors and addresses that try to be markup, script or another text direction."""
    rows = [
        row(number, HOSTILE_CLASSES[number % len(HOSTILE_CLASSES)], teacher_reason=text, author=text, licence=text,
            source_id=text, teacher_model=text, url=url, teacher_confidence=0.1 + 0.05 * number)
        for number, (text, url) in enumerate(zip(HOSTILE * 2, [
            "javascript:document.title='owned'", "data:text/html,<script>1</script>", "https://images.invalid/\"><script>1</script>",
            "//images.invalid/x", None] * 4, strict=True))
    ]  # fmt: skip
    return make_labelled(rows, HOSTILE_CLASSES)
