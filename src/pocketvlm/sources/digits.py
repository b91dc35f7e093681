"""The handwritten digits that scikit-learn ships: real images that need no network and no key."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator
from functools import cache

import numpy as np
from PIL import Image

from pocketvlm.errors import DataError, RunFileError, UserError
from pocketvlm.run_file import DigitsSource
from pocketvlm.sources.record import Context, Record, SourceReader

IMAGES = 1797
URL = "https://archive.ics.uci.edu/dataset/80/optical+recognition+of+handwritten+digits"
CONTENT_SHA256 = "87ff0c9e40dc7e2c0e34e7257799c2e3f3aec1a016363bb11cad869ec428a826"
"""Of all pixels (0..16) and then all labels (0..9) as bytes: the same in scikit-learn 0.24 to 1.9.

Pinned so that the other stages know the content without importing scikit-learn, which takes seconds or is not there.
"""


class Digits(SourceReader):
    """1,797 images of 8x8, enlarged. The run file's classes are in the order of the digits 0 to 9."""

    def __init__(self, source: DigitsSource, context: Context) -> None:
        if context.labelled and len(context.classes) != 10:
            raise RunFileError(f"run.task.classes: the digits source has ten classes, for 0 to 9 in this order, "
                               f"and here are {len(context.classes)}; name ten")
        self._source = source
        self._classes = context.classes if context.labelled else [""] * 10

    def fingerprint(self) -> str:
        return CONTENT_SHA256

    def __len__(self) -> int:
        return min(self._source.limit or IMAGES, IMAGES)

    def records(self, places: range) -> Iterator[Record]:
        images_NHW, targets_N = _load()
        for index in places:
            yield Record(
                source_id=f"digits/{index:04d}",
                data=_png(images_NHW[index], self._source.side_px),
                label=self._classes[int(targets_N[index])],
                url=URL,
                author="E. Alpaydin, C. Kaynak",
                licence="CC BY 4.0",
            )


@cache
def _load() -> tuple[np.ndarray, np.ndarray]:
    """Images_NHW (uint8, 0..16) and targets_N (uint8, 0..9)."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise UserError("run.labeller.source.kind: digits needs scikit-learn, which is not installed; "
                        "pip install 'pocketvlm[digits]'") from error
    digits = load_digits()
    images_NHW, targets_N = digits.images.astype(np.uint8), digits.target.astype(np.uint8)
    if hashlib.sha256(images_NHW.tobytes() + targets_N.tobytes()).hexdigest() != CONTENT_SHA256:
        raise DataError("the digits of this scikit-learn are not those that this version of PocketVLM knows; "
                        "install the scikit-learn of requirements.lock")
    return images_NHW, targets_N


def _png(image_HW: np.ndarray, side_px: int) -> bytes:
    grey_HW = (image_HW.astype(np.uint16) * 255 + 8) // 16
    image = Image.fromarray(grey_HW.astype(np.uint8)).resize((side_px, side_px), Image.Resampling.NEAREST)
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()
