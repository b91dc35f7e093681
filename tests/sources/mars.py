"""A dataset as those of the Hub are, with the fifteen classes of jobs/mars.yaml: Parquet shards, a card, and images made here.

Nothing of it comes from DoMars16k: each class is a texture of its own, so that a model can tell them apart, and each image has
its own phase and noise. `python tests/sources/mars.py FOLDER [--images 10]` writes it.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

CLASSES = ("ael", "aec", "cli", "rid", "fsf", "sfe", "fsg", "fse", "fss", "cra", "sfx", "mix", "rou", "smo", "tex")
"""In the order of jobs/mars.yaml."""
SPLITS = {"train": 0.7, "validation": 0.1, "test": 0.2}
SIDE_PX = 200
CARD = """---
license: cc-by-4.0
task_categories:
- image-classification
---

# Landforms

Generated for tests.
"""


@dataclass(frozen=True)
class Expected:
    """One row as the source must give it."""

    source_id: str
    label: str
    sha256: str
    """Of the image's bytes."""


def texture(name: str, number: int, side_px: int = SIDE_PX) -> bytes:
    """A JPEG of a class: stripes of the class's direction and width, an even grey below, noise of the image's own."""
    order = CLASSES.index(name)
    rng = np.random.default_rng([order, number])
    y_HW, x_HW = np.mgrid[0:side_px, 0:side_px] / side_px
    angle, waves = np.pi * order / len(CLASSES), 3 + 2 * (order % 5)
    wave_HW = np.sin(2 * np.pi * waves * (x_HW * np.cos(angle) + y_HW * np.sin(angle)) + rng.uniform(0, 2 * np.pi))
    grey_HW = 60 + 9 * order + 40 * wave_HW + rng.normal(0, 6, (side_px, side_px))
    out = io.BytesIO()
    Image.fromarray(np.clip(grey_HW, 0, 255).astype(np.uint8)).save(out, "JPEG", quality=90)
    return out.getvalue()


def schema(features: dict[str, Any] | None = None) -> pa.Schema:
    """As `datasets` writes it."""
    told = features or {"image": {"_type": "Image"}, "label": {"names": list(CLASSES), "_type": "ClassLabel"}}
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    metadata = {"huggingface": json.dumps({"info": {"features": told}})}
    return pa.schema([("image", image), ("label", pa.int64())], metadata=metadata)


def write_mars(
    folder: Path, images_per_class: int = 10, side_px: int = SIDE_PX, shards: int = 2, row_group_rows: int = 100
) -> list[Expected]:
    """Writes `README.md` and `data/<split>-0000N-of-0000M.parquet`; gives all rows in the order of the source."""
    (folder / "data").mkdir(parents=True)
    (folder / "README.md").write_text(CARD)
    expected: list[Expected] = []
    ends = np.round(np.cumsum([*SPLITS.values()]) * images_per_class).astype(int)
    for split, first, end in zip(SPLITS, [0, *ends], ends, strict=False):
        # Classes in turn: no reader may meet them one after the other.
        rows = [(name, number) for number in range(first, end) for name in CLASSES]
        images = [texture(name, number, side_px) for name, number in rows]
        expected += [
            Expected(f"{split}/{index:08d}", name, hashlib.sha256(data).hexdigest())
            for index, ((name, _), data) in enumerate(zip(rows, images, strict=True))
        ]
        for shard in range(shards):
            part = range(len(rows) * shard // shards, len(rows) * (shard + 1) // shards)
            table = pa.Table.from_pydict({
                "image": [{"bytes": images[i], "path": f"{rows[i][0]}_{rows[i][1]}.jpg"} for i in part],
                "label": [CLASSES.index(rows[i][0]) for i in part],
            }, schema=schema())  # fmt: skip
            pq.write_table(
                table, folder / "data" / f"{split}-{shard:05d}-of-{shards:05d}.parquet", row_group_size=row_group_rows
            )
    return expected


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--images", type=int, default=10, help="of each class")
    options = parser.parse_args()
    print(f"{len(write_mars(options.folder, options.images))} images in {options.folder}")
