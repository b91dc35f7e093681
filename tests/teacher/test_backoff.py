"""Between two tries of one call, and the forecast of what calls cost."""

from __future__ import annotations

from pathlib import Path

import pytest
from asking import images, live
from fake_teacher import FakeTeacher

from pocketvlm.errors import TeacherUnavailable
from pocketvlm.run_file import Teacher
from pocketvlm.teacher.estimate import image_tokens


def test_a_retry_after_of_nothing_is_no_leave_to_hammer(fake_teacher: FakeTeacher, tmp_path: Path) -> None:
    fake_teacher.faults.change({"rates": {"rate_limit": 1.0}, "retry_after_s": 0.0})
    with live(fake_teacher, tmp_path, in_flight=2, deadline_s=2.0) as client, pytest.raises(TeacherUnavailable):
        client.ask(images(2)).wait()
    assert sum(fake_teacher.ledger.statuses.values()) < 40


@pytest.mark.parametrize(("px", "tokens"), [(512, 255), (768, 765), (2048, 765), (4096, 765)])
def test_a_large_image_is_no_dearer_than_the_size_to_which_gpt_4o_scales_it(px: int, tokens: int) -> None:
    assert image_tokens(Teacher(model="gpt-4o", image_px=px)) == tokens
