"""Images of which the fake teacher knows the class, and a task for them."""

from __future__ import annotations

import hashlib
import io
import random
from functools import cache
from typing import Any

from fake_answers import colour_of
from fake_teacher import KEY, FakeTeacher
from PIL import Image
from pydantic import SecretStr

from pocketvlm.run_file import Task, Teacher
from pocketvlm.teacher.answers import TeacherImage

CLASSES = ("water", "land", "fire")
LABELS = (*CLASSES, "none")
TASK = Task(classes=[{name: f"It shows {name}."} for name in CLASSES], question="What is it?")
SECRET = SecretStr(KEY)


@cache
def jpeg(number: int, side_px: int = 0) -> bytes:
    """A picture of class `number % 3`, no two alike; with `side_px` a noisy one of that size, about 1 byte for each pixel."""
    data = io.BytesIO()
    if side_px:
        noise = random.Random(number).randbytes(side_px * side_px * 3)
        Image.frombytes("RGB", (side_px, side_px), noise).save(data, "JPEG", quality=75)
    else:
        picture = Image.new("RGB", (24, 24), colour_of(CLASSES[number % 3], LABELS))
        picture.putpixel((0, 0), (number % 256, number // 256 % 256, 0))
        picture.save(data, "PNG")
    return data.getvalue()


def picture(number: int, side_px: int = 0) -> TeacherImage:
    """At position `number`."""
    data = jpeg(number, side_px)
    return TeacherImage(number, hashlib.sha256(data).hexdigest(), len(data), lambda: jpeg(number, side_px))


def teacher_at(fake: FakeTeacher | str, **settings: Any) -> Teacher:
    """A teacher block for that server."""
    url = fake if isinstance(fake, str) else fake.url
    price = {"input_usd": 2.5, "cached_input_usd": 1.25, "output_usd": 10.0}
    return Teacher(**{"model": "gpt-4o", "base_url": url, "price": price, "deadline_s": 20, **settings})
