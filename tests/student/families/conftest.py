"""Each family's tiny checkpoint is read once, and shipped once, for all files that look at it."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import pytest
from canvas_students import Shipped, Student, read_student, ship


@pytest.fixture(scope="session")
def students(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Student]:
    place = tmp_path_factory.mktemp("families")
    return cache(lambda name: read_student(name, place / name))


@pytest.fixture(scope="session")
def shipments(students: Callable[[str], Student], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Shipped]:
    place = tmp_path_factory.mktemp("shipped")
    return cache(lambda name: ship(students(name), place / name))


@pytest.fixture
def student(request: pytest.FixtureRequest, students: Callable[[str], Student]) -> Student:
    """Of the family that the test names."""
    return students(request.param)


@pytest.fixture
def shipped(student: Student, shipments: Callable[[str], Shipped]) -> Shipped:
    return shipments(student.name)
