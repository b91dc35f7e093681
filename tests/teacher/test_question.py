from __future__ import annotations

import base64
import json
import math
import unicodedata
from pathlib import Path
from typing import Any

import pytest
from asking import CLASSES, TASK

from pocketvlm.errors import RunFileError
from pocketvlm.run_file import Task, Teacher
from pocketvlm.teacher.question import TeacherQuestion

EXTRACT = Task.model_validate({"kind": "extract", "question": "What is on the roof?", "fields": {
    "panels": {"type": "integer", "description": "number of solar panels"},
    "state": {"type": "string", "description": "of the roof", "values": ["sound", "broken"]},
    "storeys": {"type": "integer", "description": "of the house", "values": [1, 2, 3]},
    "flat": {"type": "boolean", "description": "whether it is flat"},
    "slope": {"type": "number", "description": "in degrees"},
    "json": {"type": "list", "description": "things on it", "values": ["chimney", "window"]},
    "model_dump": {"type": "list", "description": "anything else"},
}})  # fmt: skip
READ = {"reason": "I see it.", "panels": 3, "state": "sound", "storeys": 2, "flat": True, "slope": 12.5, "json": ["window"],
        "model_dump": [], "confidence": 0.8}  # fmt: skip
SEEN = {"objects": ["log"], "materials": [], "colours": ["red"], "textures": [], "light": "dusk", "context": "a camp"}
ANSWER = {"observations": SEEN, "reason": "It burns.", "label": "fire", "runner_up": "none", "confidence": 0.9}


def question(task: Task = TASK, folder: Path = Path(), **settings: Any) -> TeacherQuestion:
    return TeacherQuestion(Teacher(model="seer", **settings), task, folder)


def parsed(**changed: Any) -> dict[str, Any] | str:
    return question().parse(json.dumps({**ANSWER, **changed}))


def every_schema(schema: dict[str, Any]) -> list[dict[str, Any]]:
    inner = [*schema.get("properties", {}).values(), *([schema["items"]] if "items" in schema else [])]
    return [schema, *(found for one in inner for found in every_schema(one))]


def test_the_prompt_says_all_that_the_teacher_should_know() -> None:
    asked = question()
    for text in ("fire: flames, embers", "water: rivers, rain", "objects", "materials", "colours", "textures", "light", "context",
                 "runner-up", "reason", "confidence from 0 to 1", "- none:", "never an instruction"):  # fmt: skip
        assert text in asked.system
    assert "fire, land, water, or none" in asked.user
    assert asked.system.index("Write the reason") < asked.system.index("name the label")


def test_the_prompt_of_an_extract_task_has_its_fields_and_its_schema() -> None:
    asked = question(EXTRACT)
    for text in ("panels (integer): number of solar panels", "state (string, one of: sound, broken)", json.dumps(asked.schema)):
        assert text in asked.system
    assert "never an instruction" in asked.system


@pytest.mark.parametrize("task", [TASK, EXTRACT], ids=["classify", "extract"])
def test_the_schema_is_strict(task: Task) -> None:
    allowed = {"type", "properties", "required", "additionalProperties", "items", "enum", "description"}
    for schema in every_schema(question(task).schema):
        assert set(schema) <= allowed
        if schema["type"] == "object":
            assert schema["required"] == list(schema["properties"])
            assert schema["additionalProperties"] is False


def test_the_teacher_observes_and_reasons_before_it_names_a_label() -> None:
    properties = question().schema["properties"]
    assert list(properties) == ["observations", "reason", "label", "runner_up", "confidence"]
    assert list(properties["observations"]["properties"]) == ["objects", "materials", "colours", "textures", "light", "context"]
    assert properties["label"]["enum"] == [*CLASSES, "none"]
    fields = question(EXTRACT).schema["properties"]
    assert list(fields) == ["reason", *EXTRACT.fields, "confidence"]
    assert fields["storeys"] == {"description": "of the house", "enum": [1, 2, 3], "type": "integer"}
    assert fields["json"]["items"] == {"enum": ["chimney", "window"], "type": "string"}


def test_prompt_files_of_the_run_file_replace_the_package_s(tmp_path: Path) -> None:
    (tmp_path / "s.jinja").write_text("{% for name, text in classes.items() %}{{ name }}={{ text }};{% endfor %}")
    (tmp_path / "u.jinja").write_text("{{ question }} {{ no_class }}")
    asked = question(folder=tmp_path, system_prompt="s.jinja", user_prompt="u.jinja")
    assert asked.system == "fire=flames, embers;land=earth, rock;water=rivers, rain;"
    assert asked.user == "Which element is it? none"
    assert asked.prompt_sha256 != question().prompt_sha256
    assert asked.key != question().key


@pytest.mark.parametrize(
    ("template", "says"),
    [
        (None, "missing.jinja cannot be read (No such file or directory)"),
        ("{% if %}", "line 1"),
        ("{{ clases }}", "'clases' is undefined; it may use"),
        ("{{ 1 / 0 }}", "division by zero"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("{{ classes.clear() }}", "unsafe"),
        ("  {# nothing #} ", "renders to nothing"),
        ("{% for i in range(99999) %}long{% endfor %}", "at most 100000"),
    ],
)
def test_a_prompt_file_that_cannot_be_used_is_named_with_its_key(template: str | None, says: str, tmp_path: Path) -> None:
    if template is not None:
        (tmp_path / "missing.jinja").write_text(template)
    with pytest.raises(RunFileError) as refused:
        question(folder=tmp_path, user_prompt="missing.jinja")
    assert str(refused.value).startswith("run.labeller.teacher.user_prompt: missing.jinja")
    assert says in str(refused.value)


def test_names_that_the_answer_needs_are_refused() -> None:
    with pytest.raises(RunFileError, match=r"run\.task\.classes\.None"):
        question(Task(classes={"None": "", "fire": ""}, question="?"))
    fields = {"confidence": {"type": "number", "description": ""}}
    with pytest.raises(RunFileError, match=r"run\.task\.fields\.confidence"):
        question(Task.model_validate({"kind": "extract", "question": "?", "fields": fields}))


def test_the_key_follows_what_changes_an_answer_and_nothing_else() -> None:
    key = question().key
    assert len(key) == 16
    changed: list[dict[str, Any]] = [
        {"temperature": 0.5}, {"seed": 1}, {"max_answer_tokens": 99}, {"detail": "low"}, {"structure": "none"},
        {"base_url": "http://other/v1"},
    ]  # fmt: skip
    assert len({key, *(question(**one).key for one in changed)}) == len(changed) + 1
    same: list[dict[str, Any]] = [
        {"image_px": 99}, {"votes": 3}, {"in_flight": 1}, {"timeout_s": 1}, {"deadline_s": 1}, {"tokens_per_minute": 9},
        {"price": {"input_usd": 1, "output_usd": 1}}, {"way": "batch"},
    ]  # fmt: skip
    assert {question(**one).key for one in same} == {key}
    assert question(Task(classes=CLASSES, question="Another question for the student?")).key == key
    assert question(base_url="http://server/v1/").key == question(base_url="http://server/v1").key


@pytest.mark.parametrize("url", ["localhost:8000/v1", "vllm", "ftp://server/v1", "http://", "http://[::1/v1", "http://server:99999/v1"])
def test_an_address_that_cannot_be_one_is_refused_with_its_key(url: str) -> None:
    with pytest.raises(RunFileError, match=r"^run\.labeller\.teacher\.base_url: "):
        question(base_url=url)


def test_a_call_has_the_image_as_bytes_and_every_parameter() -> None:
    asked = question(detail="high", seed=7, temperature=0.3, max_answer_tokens=123)
    body = asked.body(b"\xff\xd8jpeg", vote=2)
    text, image = body["messages"][1]["content"]
    assert text == {"type": "text", "text": asked.user}
    assert image["image_url"]["detail"] == "high"
    head, _, data = image["image_url"]["url"].partition(",")
    assert (head, base64.b64decode(data)) == ("data:image/jpeg;base64", b"\xff\xd8jpeg")
    assert body["messages"][0] == {"role": "system", "content": asked.system}
    assert (body["model"], body["seed"], body["temperature"], body["max_completion_tokens"]) == ("seer", 9, 0.3, 123)
    assert body["response_format"]["json_schema"] == {"name": "classify", "strict": True, "schema": asked.schema}


def test_what_is_not_set_is_not_sent() -> None:
    body = question().body(b"", vote=0)
    assert set(body) == {"model", "messages", "max_completion_tokens", "response_format"}
    assert "detail" not in body["messages"][1]["content"][1]["image_url"]


def test_other_servers_are_told_the_limit_by_the_name_that_all_of_them_know() -> None:
    assert question(base_url="http://vllm:8000/v1").body(b"", 0)["max_tokens"] == 800


@pytest.mark.parametrize(("structure", "format"), [("json_object", {"type": "json_object"}), ("none", None)])
def test_without_a_schema_in_the_call_the_prompt_has_it(structure: str, format: Any) -> None:
    asked = question(structure=structure)
    body = asked.body(b"", 0)
    assert body.get("response_format") == format
    assert json.dumps(asked.schema) in body["messages"][0]["content"]


def test_a_repair_shows_the_broken_answer_and_why() -> None:
    asked = question()
    messages = asked.repair(asked.body(b"", 0)["messages"], "{broken \ud800", "not valid JSON")
    assert [message["role"] for message in messages] == ["system", "user", "assistant", "user"]
    assert messages[2]["content"] == "{broken ?"
    assert "not valid JSON" in messages[3]["content"]
    json.dumps(messages, ensure_ascii=False).encode()


@pytest.mark.parametrize("wrapped", ["{}", "Sure!\n```json\n{}\n```\nAnything else?", "<think>{{maybe}}</think>{}"])
def test_an_answer_is_found_in_what_surrounds_it(wrapped: str) -> None:
    assert question().parse(wrapped.replace("{}", json.dumps(ANSWER))) == ANSWER


def test_labels_are_put_into_their_own_spelling() -> None:
    answer = parsed(label=" FIRE", runner_up="None")
    assert isinstance(answer, dict)
    assert (answer["label"], answer["runner_up"]) == ("fire", "none")


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"label": "wood"}, "label"),
        ({"label": None}, "label"),
        ({"label": ["fire"]}, "label"),
        ({"confidence": 1.01}, "confidence"),
        ({"confidence": -0.1}, "confidence"),
        ({"confidence": True}, "confidence"),
        ({"confidence": "0.9"}, "confidence"),
        ({"confidence": math.nan}, "NaN"),
        ({"reason": 3}, "reason"),
        ({"observations": "fire"}, "observations"),
        ({"observations": {**SEEN, "light": 1}}, "observations.light"),
        ({"observations": {}}, "observations.objects"),
    ],
)
def test_an_answer_that_is_not_allowed_says_where(changed: dict[str, Any], says: str) -> None:
    why = parsed(**changed)
    assert isinstance(why, str)
    assert says in why


NO_ANSWERS = [
    "", "no", "{", "}{", "[1]", "{'label': 'fire'}", "{}", "[" * 50_000 + "{" + "]" * 49_000 + "}", "{" * 9000 + "}" * 9000,
    '{"a":' * 9000 + "1" + "}" * 9000, "x" * 200_000, '{"confidence": 1e999}', '{"a": ' + "9" * 9000 + "}",
]  # fmt: skip


@pytest.mark.parametrize("text", NO_ANSWERS, ids=range(len(NO_ANSWERS)))
def test_what_is_no_answer_is_a_reason_and_never_an_error(text: str) -> None:
    assert isinstance(question().parse(text), str)


def test_texts_are_cleaned_and_cut() -> None:
    text = '{"observations": %s, "reason": %s, "label": "fire", "runner_up": "land", "confidence": 1}'
    reason = '"a\\u0000b\\n\\tc \\ud83d\\ude00 \\ud800 ' + "x" * 9000 + '"'
    answer = question().parse(text % (json.dumps({**SEEN, "objects": ["y" * 400] * 99}), reason))
    assert isinstance(answer, dict)
    assert answer["reason"].startswith("a b c \N{GRINNING FACE} x")
    assert not [one for one in answer["reason"] if unicodedata.category(one) in ("Cc", "Cs")]
    assert len(answer["reason"]) == 2000
    assert [len(one) for one in answer["observations"]["objects"]] == [200] * 50
    json.dumps(answer, ensure_ascii=False).encode()


def test_keys_that_nobody_asked_for_are_dropped() -> None:
    assert parsed(notes="!", observations={**SEEN, "mood": "gay"}) == ANSWER


def test_an_extract_answer_has_the_fields_of_the_task() -> None:
    assert question(EXTRACT).parse(json.dumps(READ)) == READ


@pytest.mark.parametrize(
    "changed",
    [{"panels": 2.5}, {"panels": True}, {"panels": 10**30}, {"panels": "3"}, {"state": "old"}, {"storeys": 4}, {"flat": 1},
     {"flat": "yes"}, {"slope": None}, {"json": ["window", "door"]}, {"json": "window"}, {"model_dump": [1]}, {"confidence": 2}],
)  # fmt: skip
def test_an_extract_answer_that_is_not_allowed_says_where(changed: dict[str, Any]) -> None:
    why = question(EXTRACT).parse(json.dumps({**READ, **changed}))
    assert isinstance(why, str)
    assert next(iter(changed)) in why
