"""Which wordings of the question an image is trained with, and what is filled into them."""

from __future__ import annotations

import hashlib
import inspect
from collections import Counter
from typing import Any

from pocketvlm.run_file import Task
from pocketvlm.student.variants import every_variant, settings, variants, variants_per_image

CLASSES = [{"snow": "white {cold} stuff"}, {"dust": "  a grey film\n"}]
ASKS = ["Say it.", "One of {classes}?", "Look: {{x}}", "And now?", "What is here?"]


def task(questions: list[dict[str, str]] | None = None, **keys: Any) -> Task:
    questions = [{"ask": ask} for ask in ASKS] if questions is None else questions
    return Task.model_validate({"classes": CLASSES, "question": "Which?", "questions": questions, **keys})


def sha(number: int) -> str:
    return hashlib.sha256(str(number).encode()).hexdigest()


def test_label_description_and_classes_are_filled_into_question_and_answer() -> None:
    whole = {"ask": "{classes}? {{no}}", "answer": "{label}: {description}"}
    both = task([whole, {"ask": "Is it like {description}?", "answer": "yes"}], questions_per_image=2)
    assert variants(both, sha(0), "snow") == [
        ("snow, dust? {no}", "snow: white {cold} stuff"), ("Is it like white {cold} stuff?", "yes"),
    ]  # fmt: skip
    assert variants(both, sha(0), "dust") == [("snow, dust? {no}", "dust: a grey film"), ("Is it like a grey film?", "yes")]


def test_an_answer_is_the_plain_label_unless_it_is_another() -> None:
    assert variants(task([{"ask": "What?"}]), sha(0), "dust") == [("What?", "dust")]


def test_without_questions_there_are_no_variants() -> None:
    assert variants(task([]), sha(0), "snow") == []
    assert variants_per_image(task([])) == 0
    assert settings(task([])) == {}


def test_an_image_gets_as_many_different_wordings_as_asked_for_in_their_order() -> None:
    for number in range(50):
        asks = [ask for ask, _ in variants(task(questions_per_image=3), sha(number), "snow")]
        places = [[*ASKS[:1], "One of snow, dust?", "Look: {x}", *ASKS[3:]].index(ask) for ask in asks]
        assert len(places) == 3 and places == sorted(set(places))


def test_all_wordings_are_taken_where_there_are_fewer() -> None:
    assert len(variants(task(questions_per_image=9), sha(0), "snow")) == variants_per_image(task(questions_per_image=9)) == 5


def test_the_choice_follows_from_the_bytes_of_the_image_alone() -> None:
    two = task(questions_per_image=2)
    assert [variants(two, sha(n), "snow") for n in range(20)] == [variants(two, sha(n), "snow") for n in range(20)]
    for number in range(20):
        as_snow, as_dust = (variants(two, sha(number), label) for label in ("snow", "dust"))
        assert [ask for ask, _ in as_snow] == [ask for ask, _ in as_dust]


def test_every_wording_is_chosen_about_as_often() -> None:
    counts = Counter(ask for n in range(5000) for ask, _ in variants(task(questions_per_image=2), sha(n), "snow"))
    assert len(counts) == 5 and all(abs(count - 2000) < 150 for count in counts.values()), "the deviation of each is 35"


def test_a_wording_added_at_the_end_replaces_few_others() -> None:
    before, after = task(), task([{"ask": ask} for ask in [*ASKS, "New?"]])
    other = [number for number in range(600) if variants(before, sha(number), "snow") != variants(after, sha(number), "snow")]
    assert all(variants(after, sha(number), "snow") == [("New?", "snow")] for number in other)
    assert 60 < len(other) < 140, "a sixth of 600"


def test_plan_is_told_every_wording_of_a_template() -> None:
    assert every_variant(task([{"ask": "What?", "answer": "It is {label}."}]), 0) == [
        ("snow", "What?", "It is snow."), ("dust", "What?", "It is dust."),
    ]  # fmt: skip


def test_nothing_that_a_teacher_says_can_reach_a_variant() -> None:
    assert list(inspect.signature(variants).parameters) == ["task", "sha256", "label"]


def test_settings_change_with_all_that_changes_a_variant_and_with_nothing_else() -> None:
    plain = [{"ask": "What?"}]
    assert settings(task(plain)) == settings(task(plain, questions_per_image=7)), "there is one to choose from"
    assert settings(task(plain)) == settings(task(plain, classes=[{"snow": "other"}, {"dust": "words"}]))
    described = [{"ask": "What?", "answer": "{description}"}]
    assert settings(task(described)) != settings(task(described, classes=[{"snow": "other"}, {"dust": "words"}]))
    assert settings(task()) != settings(task(questions_per_image=2))
    assert settings(task(plain)) != settings(task([{"ask": "What then?"}]))
