"""Looks of a training image: what is done to it, what stays, and that it follows from numbers alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from PIL import Image

from pocketvlm.run_file import Augment
from pocketvlm.stages.training.augment import content, look
from pocketvlm.student.pixels import letterbox

NOTHING: dict[str, Any] = {"turned": 0, "light": 0, "blurred": 0, "resized": 0, "jpeg_min": 100, "jpeg_max": 100}
SHA = "0123456789abcdef" * 4


def photo(width: int, height: int, seed: int = 0) -> Image.Image:
    """Smooth, bright, and with another colour in each corner."""
    corners = np.random.default_rng(seed).integers(60, 200, (2, 2, 3), dtype=np.uint8)
    return Image.fromarray(corners).resize((width, height), Image.Resampling.BILINEAR)


def made(image: Image.Image, number: int = 1, seed: int = 0, sha: str = SHA, **settings: Any) -> Any:
    augment = Augment.model_validate({**NOTHING, **settings})
    return np.asarray(look(image, augment, seed=seed, sha256=sha, number=number)).astype(int)


def test_a_look_follows_from_seed_image_and_number() -> None:
    image, settings = letterbox(photo(60, 40), 48), {"light": 0.3, "blurred": 0.5, "resized": 0.5, "jpeg_min": 60, "turned": 0.5}
    first = made(image, **settings)
    assert (first == made(image, **settings)).all()
    for other in (made(image, number=2, **settings), made(image, seed=1, **settings), made(image, sha="f" * 64, **settings)):
        assert (first != other).any()


def test_the_image_itself_is_the_first_look() -> None:
    image = letterbox(photo(60, 40), 48)
    assert look(image, Augment(), seed=0, sha256=SHA, number=0) is image
    assert look(image, None, seed=0, sha256=SHA, number=1) is image


@pytest.mark.parametrize(("width", "height"), [(60, 40), (40, 61), (33, 32), (48, 48)])
@pytest.mark.parametrize("turned", [0, 1])
def test_the_border_of_the_canvas_stays_black_whatever_is_done_to_the_photo(width: int, height: int, turned: int) -> None:
    canvas = letterbox(photo(width, height), 48)
    left, top, right, bottom = content(canvas)
    inside = np.asarray(canvas)[top:bottom, left:right]
    assert inside.min() > 30 and np.asarray(canvas).sum() == inside.astype(int).sum(), "the box is the photo"
    for number in range(1, 6):
        got = made(canvas, number=number, light=0.5, blurred=1, resized=1, jpeg_min=60, jpeg_max=70, turned=turned)
        dark_rows, dark_columns = (got.max(axis=(1, 2)) == 0).sum(), (got.max(axis=(0, 2)) == 0).sum()
        across = {int(dark_rows), int(dark_columns)}
        assert across == {48 - (bottom - top), 48 - (right - left)}, "a turned photo has its border on the other sides"


def test_a_photo_is_turned_as_an_app_turns_it_that_forgets_its_orientation() -> None:
    image = photo(40, 40)
    upright = np.asarray(image).astype(int)
    seen = set()
    for number in range(1, 30):
        got = made(image, number=number, turned=1)
        turns = [quarter for quarter in (1, 2, 3) if abs(np.rot90(upright, quarter) - got).mean() < 2]
        assert len(turns) == 1
        seen.add(turns[0])
    assert seen == {1, 2, 3}
    wide = photo(40, 20)
    assert made(wide, turned=1).shape == (20, 40, 3), "an image that is no square keeps its size"
    assert abs(np.rot90(np.asarray(wide).astype(int), 2) - made(wide, turned=1)).mean() < 2


@pytest.mark.parametrize("setting", [{"light": 0.4}, {"blurred": 1}, {"resized": 1}, {"jpeg_min": 60, "jpeg_max": 60}])
def test_each_property_changes_the_photo_a_little(setting: dict[str, Any]) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    plain, changed = made(noise), made(noise, **setting)
    assert 1 < abs(plain - changed).mean() < 90


def test_a_share_is_the_share_of_the_looks() -> None:
    image = photo(24, 24)
    upright = np.asarray(image).astype(int)
    turned = [abs(made(image, number=number, turned=0.25) - upright).mean() > 2 for number in range(1, 201)]
    assert 30 <= sum(turned) <= 70
