from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pocketvlm.errors import RunFileError
from pocketvlm.run_file import DigitsSource
from pocketvlm.sources.open import open_source
from pocketvlm.sources.record import Context

CLASSES = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]


def test_all_1797_digits_are_there_with_their_names() -> None:
    records = list(open_source(DigitsSource(kind="digits"), Context(Path(), CLASSES)))
    assert len(records) == 1797
    counts = {name: sum(record.label == name for record in records) for name in CLASSES}
    assert list(counts.values()) == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    assert len({record.source_id for record in records}) == 1797
    assert {record.licence for record in records} == {"CC BY 4.0"}


def test_digit_is_enlarged_without_blur_and_uses_all_greys() -> None:
    reader = open_source(DigitsSource(kind="digits", side_px=32, limit=10), Context(Path(), CLASSES))
    records = list(reader)
    assert len(records) == len(reader) == 10
    image = Image.open(io.BytesIO(records[0].data or b""))
    pixels_HW = np.asarray(image)
    assert pixels_HW.shape == (32, 32)
    assert (pixels_HW == pixels_HW[::4, ::4].repeat(4, 0).repeat(4, 1)).all()
    assert [pixels_HW.min(), max(np.asarray(Image.open(io.BytesIO(r.data or b""))).max() for r in records)] == [0, 255]


def test_other_than_ten_classes_are_refused() -> None:
    with pytest.raises(RunFileError, match=r"run.task.classes: the digits source has ten classes.*here are 9"):
        open_source(DigitsSource(kind="digits"), Context(Path(), CLASSES[:9]))
