"""From files and folders to what a pair is sent: which are found, and the same pixels as the labeller's."""

from __future__ import annotations

import io
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pocketvlm.errors import UserError
from pocketvlm.predict.images import MAX_PIXELS, find_images, prepare
from pocketvlm.sources.images import decode
from pocketvlm.sources.record import Problem
from pocketvlm.student.pixels import letterbox

CANVAS = {"canvas_px": 48, "longest_edge_px": 32}
AS_IT_IS = {"canvas_px": None, "longest_edge_px": 32}


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    """A photograph as phones write it: JPEG, lying on its side by EXIF."""
    noise_HWC = np.random.default_rng(0).integers(0, 256, (30, 41, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    path = tmp_path / "photo.jpg"
    Image.fromarray(noise_HWC).resize((410, 300)).save(path, quality=85, exif=exif)
    return path


def pixels(data: bytes | Problem) -> np.ndarray:
    assert isinstance(data, bytes), data
    image = Image.open(io.BytesIO(data))
    assert (image.format, image.mode) == ("PNG", "RGB")
    return np.asarray(image)


def test_the_canvas_is_the_labellers(photo: Path) -> None:
    decoded = decode(photo.read_bytes(), MAX_PIXELS)
    assert isinstance(decoded, Image.Image)
    assert (pixels(prepare(photo, CANVAS)) == np.asarray(letterbox(decoded, 48))).all()
    assert (pixels(prepare(photo, AS_IT_IS)) == np.asarray(decoded)).all()
    assert decoded.size == (300, 410)


def test_path_text_bytes_and_pillow_image_are_one_image(photo: Path) -> None:
    wanted = prepare(photo, CANVAS)
    assert prepare(str(photo), CANVAS) == prepare(photo.read_bytes(), CANVAS) == wanted
    with Image.open(photo) as image:
        assert prepare(image, CANVAS) == wanted


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "YCbCr", "HSV", "F"])
def test_a_pillow_image_of_any_mode_is_taken(photo: Path, mode: str) -> None:
    with Image.open(photo) as image:
        grey = image.convert("L")
    other = grey.convert(mode) if mode in ("1", "L", "LA", "P", "F") else grey.convert("RGB").convert(mode)
    assert pixels(prepare(other, CANVAS)).any()


def test_what_is_transparent_is_black_from_a_file_and_from_pillow(tmp_path: Path) -> None:
    image = Image.new("RGBA", (20, 20), (255, 255, 255, 0))
    image.save(tmp_path / "clear.png")
    assert not pixels(prepare(tmp_path / "clear.png", CANVAS)).any()
    assert not pixels(prepare(image, CANVAS)).any()


@pytest.mark.parametrize(("name", "content", "reason"), [
    ("empty.jpg", b"", "empty_file"),
    ("cut.png", b"\x89PNG\r\n\x1a\n1234", "damaged"),
    ("text.jpg", b"these are words", "unsupported_format"),
    ("phone.heic", b"\0\0\0\x18ftypheic", "unsupported_format"),
])  # fmt: skip
def test_a_file_that_is_no_image_says_why(tmp_path: Path, name: str, content: bytes, reason: str) -> None:
    (tmp_path / name).write_bytes(content)
    problem = prepare(tmp_path / name, CANVAS)
    assert isinstance(problem, Problem)
    assert problem.reason == reason


def test_pipes_folders_and_names_that_do_not_exist_are_problems_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    found = [prepare(path, CANVAS) for path in (tmp_path / "pipe.jpg", tmp_path, tmp_path / "none.jpg")]
    assert [problem.reason for problem in found if isinstance(problem, Problem)] == ["not_a_file", "not_a_file", "missing_file"]


def test_an_image_as_it_is_may_be_too_thin(tmp_path: Path) -> None:
    Image.new("RGB", (400, 4)).save(tmp_path / "thin.png")
    problem = prepare(tmp_path / "thin.png", AS_IT_IS)
    assert isinstance(problem, Problem)
    assert problem.reason == "too_thin"
    assert isinstance(prepare(tmp_path / "thin.png", CANVAS), bytes)


def test_folders_are_searched_deep_sorted_and_without_litter(tmp_path: Path) -> None:
    for name in ("b/2.PNG", "b/10.jpg", "a.webp", "b/c/deep.heic", "notes.txt", ".hidden/x.png", "__MACOSX/y.png", "b/.z.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    named = tmp_path / "notes.txt"
    found = find_images([named, tmp_path])
    names = [path.relative_to(tmp_path).as_posix() for path in found]
    assert names == ["notes.txt", "a.webp", "b/10.jpg", "b/2.PNG", "b/c/deep.heic"]


def test_a_folder_without_images_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    with pytest.raises(UserError, match="holds no image"):
        find_images([tmp_path])


def test_a_folder_that_may_not_be_read_is_refused_rather_than_left_out() -> None:
    with an_ordinary_user(), tempfile.TemporaryDirectory() as name:  # pytest's own folders are closed to others
        photos = Path(name)
        (photos / "open.png").touch()
        (photos / "closed").mkdir(mode=0)
        try:
            with pytest.raises(UserError, match=r"closed: cannot be read \(Permission denied\); let this user read it"):
                find_images([photos])
        finally:
            (photos / "closed").chmod(0o700)


@contextmanager
def an_ordinary_user() -> Iterator[None]:
    """Root may read everything."""
    user = os.geteuid()
    os.seteuid(65534 if user == 0 else user)
    try:
        yield
    finally:
        os.seteuid(user)
