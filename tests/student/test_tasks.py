"""What answers of each kind of task are, and what they mean."""

from __future__ import annotations

import json
from typing import Any

import pytest

from pocketvlm.run_file import Task
from pocketvlm.student.tasks import kind_of

CLASSES = [{"no": "a cross"}, {"yes": "a tick"}]
FIELDS: list[dict[str, Any]] = [
    {"is_food": {"type": "integer", "values": [0, 1], "description": "1 if food can be seen"}},
    {"title": {"type": "string", "description": "a title", "max_length": 20}},
    {"items": {"type": "list", "description": "foods", "max_items": 2}},
]
GOOD = '{"is_food":1,"title":"a red apple","items":["apple"]}'


def extract(**changes: Any) -> Task:
    question = 'Answer as {"is_food": 1, "title": "...", "items": ["..."]}'
    return Task.model_validate({"kind": "extract", "fields": FIELDS, "question": question, **changes})


def reasoning(**changes: Any) -> Task:
    return Task.model_validate({"classes": CLASSES, "question": "So?", "answer": "reasoning", **changes})


def test_a_label_is_answered_by_its_name_alone() -> None:
    kind = kind_of(Task.model_validate({"classes": CLASSES, "question": "So?"}))
    assert kind.answer("yes", "because") == "yes"
    assert kind.grammar(" ") == 'root ::= " no" | " yes"\n'
    assert kind.read("yes") is not None
    assert kind.read(" yes") is kind.read("yes.") is kind.read("maybe") is None


@pytest.mark.parametrize("answer", ["label", "reasoning"])
def test_class_names_that_begin_another_are_found(answer: str) -> None:
    task = Task.model_validate({"classes": [{"no": "n"}, {"none": "m"}], "question": "So?", "answer": answer})
    assert [line for line in kind_of(task).problems() if "'no' is the beginning of 'none'" in line]


def test_a_reasoned_answer_is_two_lines_and_is_read_back() -> None:
    kind = kind_of(reasoning())
    text = kind.answer("yes", "there is\n a tick ")
    assert text == "Reasoning: there is a tick\nAnswer: yes"
    said = kind.read(text)
    assert said is not None
    assert (said.label, said.reason) == ("yes", "there is a tick")


@pytest.mark.parametrize(
    "text",
    ["yes", "Reasoning: a tick", "Reasoning: a tick\nAnswer: maybe", "Reasoning: \nAnswer: yes", "Reasoning: a\nb\nAnswer: yes",
     "Reasoning: a tick\nAnswer: yes.", "Reasoning: a tick\nAnswer:yes", "a tick\nAnswer: yes"],
)  # fmt: skip
def test_what_is_no_reasoned_answer_says_nothing(text: str) -> None:
    assert kind_of(reasoning()).read(text) is None


def test_reasons_come_from_templates_by_the_bytes_of_an_image_or_from_the_teacher() -> None:
    templates = ["It shows {description}.", "I see {description}: {label}."]
    kind: Any = kind_of(reasoning(reasons=templates))
    chosen = {kind.reason("yes", f"{number:064x}", "the teacher's") for number in range(40)}
    assert chosen == {"It shows a tick.", "I see a tick: yes."}
    assert kind.reason("yes", "ab" * 32, None) == kind.reason("yes", "ab" * 32, None)
    assert kind.longest(len) == "Reasoning: I see a tick: yes.\nAnswer: yes"
    of_teacher: Any = kind_of(reasoning())
    assert of_teacher.reason("yes", "ab" * 32, "the teacher's") == "the teacher's"
    assert of_teacher.longest(len) is None
    with pytest.raises(ValueError, match="no reason"):
        of_teacher.answer("yes", None)


def test_fields_are_answered_as_compact_json_in_their_order() -> None:
    kind = kind_of(extract())
    shuffled = json.dumps(dict(reversed(json.loads(GOOD).items())), indent=2)
    said = kind.read(shuffled)
    assert said is not None
    assert said.label == GOOD == kind.answer(shuffled)
    schema = kind.schema()
    assert schema is not None
    assert list(schema["properties"]) == schema["required"] == ["is_food", "title", "items"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"is_food": 10**400}, "not every reader"),  # as digits without an end
        ({"is_food": 2}, "is_food is or holds 2"), ({"is_food": True}, "no integer"), ({"is_food": "1"}, "no integer"),
        ({"title": None}, "no string"), ({"title": "x" * 21}, "title has 21 characters and may have 20"),
        ({"items": "apple"}, "no list"), ({"items": [1]}, "something else than texts"),
        ({"items": ["a", "b", "c"]}, "items has 3 texts and may have 2"), ({"more": 1}, "more is none of"),
    ],
)  # fmt: skip
def test_what_is_not_of_the_fields_says_nothing_and_is_named(change: dict[str, Any], message: str) -> None:
    kind = kind_of(extract())
    text = json.dumps(json.loads(GOOD) | change)
    assert kind.read(text) is None
    with pytest.raises(ValueError, match=message):
        kind.answer(text)


@pytest.mark.parametrize("text", ["", "{", GOOD[:-1], GOOD + "}", "[]", GOOD.replace("1", "NaN", 1), "[" * 100_000])
def test_what_is_no_json_of_the_fields_says_nothing(text: str) -> None:
    assert kind_of(extract()).read(text) is None


def test_a_question_that_shows_no_json_is_a_problem() -> None:
    assert not list(kind_of(extract()).problems())
    for question in ("List the food.", 'As {"is_food": 1}', 'As {"title": "", "is_food": 1, "items": []}', "As {is_food: 1}"):
        (line,) = kind_of(extract(question=question)).problems()
        assert "shows no valid JSON" in line


def test_the_longest_answer_is_known_where_all_fields_have_few_values() -> None:
    assert kind_of(extract()).longest(len) is None
    fields = [FIELDS[0], {"sure": {"type": "boolean", "description": "?"}},
              {"items": {"type": "list", "values": ["a", "bcd"], "max_items": 2, "description": "?"}}]  # fmt: skip
    assert kind_of(extract(fields=fields)).longest(len) == '{"is_food":0,"sure":false,"items":["bcd","bcd"]}'


def test_fields_of_a_mapping_are_read_in_the_order_of_their_names_as_helm_sorts_them() -> None:
    merged = {name: field for one in FIELDS for name, field in one.items()}
    assert list(extract(fields=merged).fields) == ["is_food", "items", "title"]
    assert list(extract().fields) == ["is_food", "title", "items"]
