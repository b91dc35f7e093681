"""What a person sees while a stage works: plain lines in a log, a bar on a terminal."""

from __future__ import annotations

import io
import re

import pytest

from pocketvlm.progress import BAR_WIDTH, Progress, duration


class Terminal(io.StringIO):
    """A stream that says that it is a terminal."""

    def isatty(self) -> bool:
        return True


def pass_time(progress: Progress, seconds: float) -> None:
    """As if the activity had begun and printed that much earlier."""
    progress._started -= seconds
    progress._printed -= seconds


def test_a_line_is_led_by_its_stage() -> None:
    stream = io.StringIO()
    Progress("trainer", stream).line("1,258 images")
    assert stream.getvalue() == "trainer    1,258 images\n"


def test_without_a_stage_a_line_stands_alone() -> None:
    stream = io.StringIO()
    Progress(stream=stream).line("done")
    assert stream.getvalue() == "done\n"


def test_a_warning_says_that_it_is_one() -> None:
    stream = io.StringIO()
    Progress("labeller", stream).warn("3 images quarantined")
    assert stream.getvalue() == "labeller   warning: 3 images quarantined\n"


def test_a_log_gets_plain_lines_with_rate_and_time_left() -> None:
    stream = io.StringIO()
    progress = Progress("trainer", stream)
    progress.step(1, 100, "steps")
    pass_time(progress, 10)
    progress.step(21, 100, "steps", loss=0.51234, rate="2e-4")
    first, second = stream.getvalue().splitlines()
    assert first == "trainer    1/100 steps"
    found = re.fullmatch(r"trainer    21/100 steps · ([\d.]+)/s, ([\d.]+) s left · loss 0\.5123, rate 2e-4", second)
    assert found is not None
    assert float(found[1]) == pytest.approx(2.1, rel=0.05)
    assert float(found[2]) == pytest.approx(79 / 2.1, rel=0.05)
    assert "\r" not in stream.getvalue() and "\x1b" not in stream.getvalue()


def test_a_log_is_not_flooded_and_always_gets_the_last_step() -> None:
    stream = io.StringIO()
    progress = Progress("labeller", stream)
    for done in range(1, 1001):
        progress.step(done, 1000, "images")
    lines = stream.getvalue().splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("labeller   1/1000 images")
    assert lines[-1].startswith("labeller   1000/1000 images")


def test_the_last_step_says_the_rate_and_no_time_left() -> None:
    stream = io.StringIO()
    progress = Progress("labeller", stream)
    progress.step(1, 50, "images")
    pass_time(progress, 5)
    progress.step(50, 50, "images")
    last = stream.getvalue().splitlines()[-1]
    assert "/s" in last
    assert "left" not in last


def test_work_that_was_resumed_does_not_count_into_the_rate() -> None:
    stream = io.StringIO()
    progress = Progress("trainer", stream)
    progress.step(900, 1000, "steps")
    pass_time(progress, 10)
    progress.step(909, 1000, "steps")
    assert "· 1/s" in stream.getvalue()


def test_another_activity_starts_its_own_clock() -> None:
    stream = io.StringIO()
    progress = Progress("evaluator", stream)
    progress.step(1, 10, "images")
    pass_time(progress, 100)
    progress.step(1, 20, "answers")
    assert stream.getvalue().splitlines()[-1] == "evaluator  1/20 answers"


def test_a_terminal_gets_one_bar_that_is_drawn_over() -> None:
    stream = Terminal()
    progress = Progress("trainer", stream)
    progress.step(1, 4, "steps")
    for done in (2, 3, 4):
        pass_time(progress, 1)
        progress.step(done, 4, "steps")
    text = stream.getvalue()
    drawn = text.split("\r\x1b[K")[1:]
    assert [bar.count("█") for bar in drawn] == [BAR_WIDTH * done // 4 for done in (1, 2, 3, 4)]
    assert all(bar.count("█") + bar.count("░") == BAR_WIDTH for bar in drawn)
    assert text.count("\n") == 1 and text.endswith("\n")


def test_a_line_does_not_run_into_an_open_bar() -> None:
    stream = Terminal()
    progress = Progress("trainer", stream)
    progress.step(1, 4, "steps")
    progress.line("saved")
    assert stream.getvalue().endswith("1/4 steps\ntrainer    saved\n")


def test_nothing_to_do_is_no_division_by_zero() -> None:
    stream = Terminal()
    Progress("labeller", stream).step(0, 0, "images")
    assert "0/0 images" in stream.getvalue()


def test_lines_reach_the_stream_at_once() -> None:
    flushed = []

    class Watched(io.StringIO):
        def flush(self) -> None:
            flushed.append(self.getvalue())

    Progress("run", Watched()).line("one")
    assert flushed == ["run        one\n"]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.04, "0.0 s"), (8.23, "8.2 s"), (42, "42 s"), (185, "3 min 05 s"), (7620, "2 h 07 min")],
)
def test_durations_read_well(seconds: float, text: str) -> None:
    assert duration(seconds) == text

