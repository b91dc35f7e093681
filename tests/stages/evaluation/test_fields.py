"""Numbers of single fields, by hand."""

from __future__ import annotations

import json
from typing import Any

import pytest

from pocketvlm.run_file import ExtractField
from pocketvlm.stages.evaluation.fields import all_lists, field_rows, list_score, normalised, similarity

FIELDS = {
    "is_food": ExtractField(type="integer", description="", values=[0, 1]),
    "title": ExtractField(type="string", description=""),
    "items": ExtractField(type="list", description=""),
    "drinks": ExtractField(type="list", description=""),
}


def text(is_food: int = 1, title: str = "a plate", items: Any = (), drinks: Any = ()) -> str:
    return json.dumps({"is_food": is_food, "title": title, "items": list(items), "drinks": list(drinks)})


def test_micro_f1_counts_texts_and_macro_f1_counts_images() -> None:
    labels = [["apple", "bread"], ["tea"], []]
    answers = [["apple"], ["tea", "milk", "juice"], []]
    found = list_score([labels], [answers], normalised)
    assert (found.precision, found.recall) == (0.5, pytest.approx(2 / 3, abs=1e-6))
    assert found.f1 == pytest.approx(4 / 7, abs=1e-6)
    assert found.f1_macro == pytest.approx((2 / 3 + 2 / 4 + 1) / 3, abs=1e-6)


def test_an_answer_that_cannot_be_read_finds_nothing_even_where_nothing_is() -> None:
    found = list_score([[["apple"], []]], [[None, None]], normalised)
    assert (found.recall, found.f1, found.f1_macro) == (0.0, 0.0, 0.0)
    nothing = list_score([[[], []]], [[None, []]], normalised)
    assert (nothing.precision, nothing.recall, nothing.f1, nothing.f1_macro) == (0.0, 0.0, 0.0, 0.5)


def test_where_nothing_is_there_and_nothing_named_all_is_right() -> None:
    found = list_score([[[], []]], [[[], []]], normalised)
    assert (found.precision, found.recall, found.f1, found.f1_macro) == (1.0, 1.0, 1.0, 1.0)


def test_naming_what_is_not_there_is_no_precision() -> None:
    assert list_score([[[]]], [[["apple"]]], normalised).precision == 0.0


@pytest.mark.parametrize(
    ("first", "second"), [("Apple", "apple"), ("  red  wine ", "red wine"), ("\uff34\uff25\uff21", "tea"), ("straße", "STRASSE")]
)
def test_texts_that_are_the_same_once_normalised(first: str, second: str) -> None:
    assert normalised(first) == normalised(second)


def test_nothing_is_stemmed() -> None:
    assert normalised("apples") != normalised("apple")


def test_raw_and_normalised_lists_are_told_apart() -> None:
    (row,) = [row for row in field_rows(FIELDS, [text(items=["Apple"])], [text(items=["apple "])]) if row.name == "items"]
    assert row.list is not None and row.list_raw is not None
    assert (row.list.f1, row.list_raw.f1, row.accuracy) == (1.0, 0.0, 0.0)


def test_a_field_is_right_where_its_value_is_the_labels() -> None:
    labels = [text(), text(is_food=0, title="x"), text()]
    rows = field_rows(FIELDS, labels, [text(), text(title="x"), None])
    assert {row.name: row.accuracy for row in rows} == {
        "is_food": pytest.approx(1 / 3, abs=1e-6), **dict.fromkeys(("title", "items", "drinks"), pytest.approx(2 / 3, abs=1e-6))
    }
    assert [row.list is None for row in rows] == [True, True, False, False]
    assert [row.similarity is None for row in rows] == [True, False, True, True]


def test_all_lists_together_weigh_every_text_alike() -> None:
    labels, answers = [text(items=["a", "b"], drinks=["c"])], [text(items=["a", "b"], drinks=["d"])]
    assert all_lists(FIELDS, labels, answers) == pytest.approx(2 * 2 / 6, abs=1e-6)
    assert all_lists({"title": FIELDS["title"]}, labels, answers) is None


def test_similarity_is_chrf_of_each_text_and_nothing_for_no_answer() -> None:
    assert similarity(["a plate of rice"], ["a plate of rice"]) == 1.0
    assert similarity([""], [""]) == 1.0
    near, far = similarity(["a plate of rice"], ["a plate of beans"]), similarity(["a plate of rice"], ["zzz"])
    assert 0 <= far < 0.1 < 0.5 < near < 1
    assert similarity(["a", "a"], ["a", None]) == 0.5
