"""What the cards say, and that nothing that a model writes becomes part of the page."""

from __future__ import annotations

from typing import cast

from pocketvlm.demo.cards import cards, problem, seen
from pocketvlm.demo.columns import Column
from pocketvlm.predict.answer import Prediction
from pocketvlm.predict.model import Model

ANY = cast(Model, object())
"""The cards only look whether there is one."""
EVIL = "<script>alert(1)</script> ${evil} \"'"


def test_an_answer_is_escaped_wherever_it_stands() -> None:
    rows: list[Prediction | None] = [
        Prediction("p", EVIL, EVIL, 0.9, 1.0, reason=EVIL, text=EVIL),
        Prediction("p", None, None, 0.1, 1.0, text=EVIL),
        Prediction("p", {EVIL: [EVIL]}, {EVIL: [EVIL]}, 0.9, 1.0, text="x"),
        Prediction("p", error=EVIL),
    ]
    page = cards([Column(EVIL, EVIL, ANY) for _ in rows], rows, 0.5) + problem(EVIL)
    assert "<script" not in page
    assert "${" not in page


def test_a_base_that_is_not_here_says_why() -> None:
    page = cards([Column("base", "a/b, not trained for this", None, "the Hub does not answer")], [None], 0.5)
    assert "Not here: the Hub does not answer" in page


def test_fields_are_shown_by_name_and_empty_lists_as_none() -> None:
    fields = {"is_food": 1, "food_items": ["rice", "egg"], "drink_items": []}
    page = cards([Column("q8_0", "", ANY)], [Prediction("p", fields, fields, 0.9, 4.0, text="{}")], 0.5)
    assert "<dt>food_items</dt><dd>rice, egg</dd>" in page
    assert "<dt>drink_items</dt><dd>none</dd>" in page


def test_the_threshold_decides_what_is_shown() -> None:
    row = Prediction("p", "seven", "seven", 0.7, 4.0, text="seven")
    column = Column("q8_0", "", ANY)
    assert "would say" not in cards([column], [row], 0.7)
    assert "would say <span>seven</span>" in cards([column], [row], 0.71)


def test_a_picture_without_a_canvas_says_so() -> None:
    assert "as it is" in seen(b"png", {"canvas_px": None})
