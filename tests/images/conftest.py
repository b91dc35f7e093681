"""Dockerfiles as lists of instructions, and the images that a builder has made of them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Instruction:
    """One instruction of a Dockerfile; continued lines are one line, comments are gone."""

    name: str
    value: str

    @property
    def sources(self) -> list[str]:
        """What a COPY takes from the context; empty for a COPY from another stage."""
        return [] if "--from=" in self.value else self.value.split()[:-1]


@dataclass(frozen=True)
class Dockerfile:
    """images/<image>/Dockerfile."""

    image: str

    @property
    def text(self) -> str:
        return (ROOT / "images" / self.image / "Dockerfile").read_text()

    @property
    def instructions(self) -> list[Instruction]:
        lines = re.sub(r"^#.*\n", "", self.text, flags=re.MULTILINE).replace("\\\n", "").splitlines()
        return [Instruction(*line.split(maxsplit=1)) for line in lines if line.strip()]

    @property
    def final_stage(self) -> list[Instruction]:
        start = max(at for at, found in enumerate(self.instructions) if found.name == "FROM")
        return self.instructions[start:]

    def all(self, name: str) -> list[Instruction]:
        return [found for found in self.instructions if found.name == name]


def _images() -> list[str]:
    return sorted(path.parent.name for path in ROOT.glob("images/*/Dockerfile"))


IMAGES = _images()
SHARED = ("base", "build", "torch", "llama-cpp")
"""Not run by themselves."""
JOBS = tuple(image for image in IMAGES if image not in SHARED)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """`dockerfile`: each of them; `job_dockerfile`: those that a Job runs; `job_image`: their names."""
    if "dockerfile" in metafunc.fixturenames:
        metafunc.parametrize("dockerfile", [Dockerfile(image) for image in IMAGES], ids=IMAGES)
    if "job_dockerfile" in metafunc.fixturenames:
        metafunc.parametrize("job_dockerfile", [Dockerfile(image) for image in JOBS], ids=JOBS)
    if "job_image" in metafunc.fixturenames:
        metafunc.parametrize("job_image", JOBS)


@pytest.fixture
def dockerfile_of() -> type[Dockerfile]:
    """`dockerfile_of("torch")`."""
    return Dockerfile
