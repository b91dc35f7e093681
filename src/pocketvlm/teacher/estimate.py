"""What a teacher will cost, before anything is paid, and on which assumptions. What was paid is counted from `usage` alone."""

from __future__ import annotations

import math

from pocketvlm.progress import duration
from pocketvlm.run_file import Teacher
from pocketvlm.teacher.answers import Usage
from pocketvlm.teacher.budget import cost_usd

BASE_TOKENS, TILE_TOKENS, TILE_PX, SIDE_PX = 85, 170, 512, 768
"""gpt-4o's rule for an image: 85 tokens, and unless detail is low, 170 for each tile of 512 px once the shorter side is at most
768 px (OpenAI's documentation)."""
CHARS_PER_TOKEN = 4
"""Of English text, a rule of thumb."""
ANSWER_TOKENS = 250
"""An answer with observations, a reason of two sentences and the label."""


def image_tokens(teacher: Teacher) -> int:
    """Tokens of one square image by gpt-4o's rule."""
    tiles = 0 if teacher.detail == "low" else math.ceil(min(teacher.image_px, SIDE_PX) / TILE_PX) ** 2
    return BASE_TOKENS + TILE_TOKENS * tiles


def estimate(teacher: Teacher, prompt_chars: int, least: int, most: int) -> list[str]:
    """Lines for `pocketvlm plan`: calls and cost for `least` to `most` images whose prompt has `prompt_chars` characters."""
    text, image = math.ceil(prompt_chars / CHARS_PER_TOKEN), image_tokens(teacher)
    answer = min(ANSWER_TOKENS, teacher.max_answer_tokens)
    calls = (least * teacher.votes, most * teacher.votes)
    lines = [
        f"teacher {teacher.model}, {teacher.way}: {_range(*calls)} calls and a few repairs; none for what the store knows",
        _time(teacher, calls, text + image + answer),
    ]
    if teacher.price is None:
        return [*lines, "its price is not in the run file (labeller.teacher.price), so its cost is not known"]
    one = Usage(input_tokens=text + image, output_tokens=answer, batched=teacher.way == "batch")
    usd = [count * cost_usd(one, teacher.price) for count in calls]
    return [
        *lines,
        f"about {_range(*(f'{value:.2f}' for value in usd))} US dollars, assuming for each call:",
        f"{text} prompt tokens ({CHARS_PER_TOKEN} characters each), {image} for the image (gpt-4o's rule; other models count "
        f"otherwise) and {answer} for the answer",
    ]


def _time(teacher: Teacher, calls: tuple[int, int], tokens: int) -> str:
    """How long it takes, as far as anybody can know."""
    if teacher.way == "batch":
        return "each batch is answered within a day"
    minutes = [0.0]
    if teacher.requests_per_minute:
        minutes.append(1 / teacher.requests_per_minute)
    if teacher.tokens_per_minute:
        minutes.append(tokens / teacher.tokens_per_minute)
    if not max(minutes):
        return f"up to {teacher.in_flight} calls at once, as the server's quota allows; a quota that it does not say can be set"
    least, most = (duration(60 * count * max(minutes)) for count in calls)
    return f"at least {_range(least, most)} at the quota of the run file"


def _range(least: object, most: object) -> str:
    return str(most) if least == most else f"{least} to {most}"
