"""Parity in nats, and reading confidence from what the server returns."""

from __future__ import annotations

import math

import pytest

from pocketvlm.llamacpp.server import Step
from pocketvlm.phone import confidence, least_sure, read_choices, steps_after
from pocketvlm.stages.evaluation.parity import compare_answers, compare_layout
from pocketvlm.student.grammar import AllowedAnswers

VOCABULARY = {"Ġ": 0, "Ġyes": 1, "Ġno": 2, "ne": 3, "Ġn": 4, "x": 5}
ALLOWED = AllowedAnswers([" yes", " no", " none"], VOCABULARY, [])


def test_parity_of_answers_is_the_worst_images_gap_on_the_token_that_transformers_chooses() -> None:
    reference = [{1: -1.0, 2: -2.0}, {1: -0.5, 2: -3.0}]
    device = [{1: -1.001, 2: -2.5}, {1: -0.5 + 0.003, 2: -3.0 - 0.004}]
    found = compare_answers("bf16", device, reference)
    assert found.max_nats == pytest.approx(0.003)
    assert found.mean_nats == pytest.approx(0.002)
    assert (found.images, found.tokens) == (2, 2)


def test_parity_of_the_layout_is_the_root_mean_square_of_the_worst_image() -> None:
    reference = [{1: -1.0, 2: -2.0}, {1: -0.5, 2: -3.0}]
    device = [{1: -1.0, 2: -2.0}, {1: -0.5 + 0.003, 2: -3.0 - 0.004}]
    found = compare_layout("f32", device, reference)
    assert found.max_nats == pytest.approx(math.sqrt((0.003**2 + 0.004**2) / 2), abs=1e-6)
    assert found.mean_nats == pytest.approx(found.max_nats / 2, abs=1e-6)
    assert found.max_nats_of_a_token == pytest.approx(0.004)
    assert (found.images, found.tokens) == (2, 4)


def test_parity_refuses_two_vocabularies() -> None:
    with pytest.raises(ValueError, match="1 first tokens on llama-server and 2"):
        compare_layout("f32", [{1: -1.0}], [{1: -1.0, 2: -2.0}])


def test_choices_end_where_the_answer_is_decided() -> None:
    steps = [Step(1, {1: -0.1, 2: -2.0, 0: -3.0, 4: -4.0, 5: -0.05}), Step(9, {9: -0.1})]
    (choice,) = read_choices(steps, ALLOWED)
    assert choice == [-0.1, -3.0, -2.0, -4.0]  # the chosen one first, and only what the grammar allows


def test_a_token_that_the_server_left_out_counts_as_its_least_probable_one() -> None:
    (choice,) = read_choices([Step(1, {1: -0.1, 5: -7.0})], ALLOWED)
    assert choice == [-0.1, -7.0, -7.0, -7.0]
    assert confidence([choice]) < confidence([[-0.1, -9.0, -9.0, -9.0]])


def test_the_confidence_of_a_reasoned_answer_is_read_behind_the_reason() -> None:
    written = [b" Reason", b"ing: it is no", b"ne.", b"\nAnswer", b":", b" no", b"ne"]
    steps = [Step(number, {number: -0.1}, piece) for number, piece in enumerate(written)]
    assert [step.piece for step in steps_after(steps, "\nAnswer:")] == [b" no", b"ne"]
    assert steps_after(steps, "") == steps
    assert steps_after(steps[:4], "\nAnswer:") == []


def test_fields_are_as_sure_as_their_least_sure_token() -> None:
    steps = [Step(1, {1: math.log(0.9), 2: math.log(0.1)}), Step(3, {3: math.log(0.6), 4: math.log(0.3)}), Step(5, {5: -0.001})]
    assert confidence(least_sure(steps)) == pytest.approx(2 / 3)


def test_a_token_that_only_the_grammar_chose_is_not_sure_at_all() -> None:
    (step,) = least_sure([Step(7, {1: math.log(0.9), 2: math.log(0.1)})])
    assert confidence([step]) == pytest.approx(0.1 / 1.1)


def test_an_answer_without_a_choice_is_not_sure_at_all() -> None:
    assert confidence(least_sure([])) == 0.0
