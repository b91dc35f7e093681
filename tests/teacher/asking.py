"""Teachers, images and clients for the tests of this room."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fake_answers import colour_of
from fake_teacher import KEY, FakeTeacher
from PIL import Image
from pydantic import SecretStr

from pocketvlm.artifacts.folder import FolderStore
from pocketvlm.progress import Progress
from pocketvlm.run_file import Task, Teacher
from pocketvlm.teacher.answers import Outcome, Reply, TeacherImage
from pocketvlm.teacher.budget import Budget
from pocketvlm.teacher.journal import Journal
from pocketvlm.teacher.live import LiveClient
from pocketvlm.teacher.question import TeacherQuestion

CLASSES = {"fire": "flames, embers", "land": "earth, rock", "water": "rivers, rain"}
TASK = Task(classes=CLASSES, question="Which element is it?")
PRICE = {"input_usd": 2.5, "cached_input_usd": 1.25, "output_usd": 10.0}


def picture(label: str, number: int = 0) -> bytes:
    """A JPEG in the colour of its class; each number has bytes of its own."""
    data = io.BytesIO()
    Image.new("RGB", (32, 32), colour_of(label, [*CLASSES])).save(data, "JPEG")
    return data.getvalue() + b"%06d" % number  # after the end of the picture, where nobody looks


def image_of(data: bytes, position: int) -> TeacherImage:
    return TeacherImage(position, hashlib.sha256(data).hexdigest(), len(data), lambda: data)


def images(count: int) -> list[TeacherImage]:
    names = list(CLASSES)
    return [image_of(picture(names[number % len(names)], number), number) for number in range(count)]


def teacher_of(url: str, **settings: Any) -> Teacher:
    return Teacher.model_validate({"model": "seer", "base_url": url, "price": PRICE, **settings})


@contextmanager
def live(
    fake: FakeTeacher, folder: Path, *, key: str | None = KEY, budget: Budget | None = None, progress: Progress | None = None,
    task: Task = TASK, **settings: Any,
) -> Iterator[LiveClient]:  # fmt: skip
    """A client whose store is in `folder`."""
    teacher = teacher_of(fake.url, **settings)
    question = TeacherQuestion(teacher, task, folder)
    journal = Journal(FolderStore(folder / "store"), question.key, folder / "scratch")
    client = LiveClient(
        teacher, question, journal, key=None if key is None else SecretStr(key), budget=budget or Budget(None),
        progress=progress or Progress(),
    )  # fmt: skip
    with client:
        yield client


def outcomes(replies: Sequence[Reply]) -> list[Outcome]:
    return [outcome for reply in replies for outcome in reply.outcomes]


def kinds(replies: Sequence[Reply]) -> list[str]:
    return [outcome.kind for outcome in outcomes(replies)]
