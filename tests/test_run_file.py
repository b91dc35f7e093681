"""The run file as a contract: what it accepts, and what it says when it does not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from pocketvlm.errors import RunFileError
from pocketvlm.run_file import Recipe, check_run_file, read_run_file
from pocketvlm.sources.open import open_source
from pocketvlm.sources.record import Context

CLASSES = {"cat": "a cat", "dog": "a dog"}


def recipe(**changes: Any) -> dict[str, Any]:
    """A small valid recipe; `changes` name keys by path, `__` for each dot, and None deletes."""
    data: dict[str, Any] = {
        "name": "pets",
        "task": {"classes": dict(CLASSES), "question": "Which animal?"},
        "student": {"model": "tiny"},
        "labeller": {"source": {"kind": "digits"}},
        "trainer": {"phases": [{"method": "full", "train": ["text"]}]},
    }
    for path, value in changes.items():
        *parents, key = path.split("__")
        block = data
        for parent in parents:
            block = block.setdefault(parent, {})
        if value is None:
            del block[key]
        else:
            block[key] = value
    return data


def check(**changes: Any) -> Recipe:
    return check_run_file({"run": recipe(**changes)}, Path("jobs/pets.yaml")).run


def refusal(**changes: Any) -> str:
    with pytest.raises(RunFileError) as error:
        check(**changes)
    assert error.value.exit_code == 2
    return str(error.value)


def phase(**keys: Any) -> list[dict[str, Any]]:
    return [{"method": "lora", "train": ["text"], **keys}]


def test_a_small_file_is_enough_and_the_rest_has_defaults() -> None:
    run = check()
    assert (run.device.canvas_px, run.device.longest_edge_px) == (256, 512)
    assert run.quantiser.types == ["q8_0"]
    assert run.evaluator.gates.max_parity_nats is None
    assert run.labeller.split.train + run.labeller.split.validation + run.labeller.split.test == pytest.approx(1)


def test_a_list_of_classes_keeps_its_order() -> None:
    names = ["zebra", "ant", "moose"]
    assert list(check(task__classes=[{name: "an animal"} for name in names]).task.classes) == names


def test_a_mapping_of_classes_is_read_in_the_order_of_its_names_as_helm_hands_it_on() -> None:
    assert list(check(task__classes=dict.fromkeys(["zebra", "ant", "moose"], "")).task.classes) == ["ant", "moose", "zebra"]


def test_classes_are_written_as_the_list_that_keeps_their_order() -> None:
    run = check(task__classes=[{"zebra": "a zebra"}, {"ant": "an ant"}])
    written = run.model_dump(mode="json")
    assert written["task"]["classes"] == [{"zebra": "a zebra"}, {"ant": "an ant"}]
    assert list(Recipe.model_validate(written).task.classes) == ["zebra", "ant"]


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        ([{"cat": "a cat"}, {"cat": "another"}], "run.task.classes: a class is named twice"),
        ([{"cat": "a cat", "dog": "a dog"}], "run.task.classes: each item of the list must be one `- name: description`"),
    ],
)
def test_a_list_of_classes_that_is_none_is_refused(classes: list[Any], message: str) -> None:
    assert message in refusal(task__classes=classes)


def test_keys_beside_run_belong_to_the_chart_and_are_left_alone() -> None:
    run_file = check_run_file({"run": recipe(), "trainer": {"gpus": 2}, "image": {"tag": "x"}}, Path("jobs/pets.yaml"))
    assert run_file.run.name == "pets"


def test_relative_paths_start_at_the_folder_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "pets.yaml"
    path.write_text(yaml.safe_dump({"run": recipe()}))
    assert read_run_file(path).folder == tmp_path


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"lable": 1}, "run.lable: no such key; did you mean `labeller`?"),
        ({"task__clases": {}}, "run.task.clases: no such key; did you mean `classes`?"),
        ({"device__canvas": 256}, "run.device.canvas: no such key; did you mean `canvas_px`?"),
        ({"student__revison": "x"}, "run.student.revison: no such key; did you mean `revision`?"),
        ({"labeller__source": {"kind": "folder", "path": ".", "licens": "x"}},
         "run.labeller.source.licens: no such key; did you mean `licence`?"),
        ({"labeller__source": {"kind": "digits", "sid_px": 32}},
         "run.labeller.source.sid_px: no such key; did you mean `side_px`?"),
        ({"labeller__split": {"validaton": 0.1}},
         "run.labeller.split.validaton: no such key; did you mean `validation`?"),
        ({"trainer__phases": phase(learning_rat=1e-3)},
         "run.trainer.phases[0].learning_rat: no such key; did you mean `learning_rate`?"),
        ({"trainer__trackers": {"wand": "x"}}, "run.trainer.trackers.wand: no such key; did you mean `wandb`?"),
        ({"quantiser__type": ["q8_0"]}, "run.quantiser.type: no such key; did you mean `types`?"),
        ({"evaluator__gates": {"min_acuracy": 0.9}},
         "run.evaluator.gates.min_acuracy: no such key; did you mean `min_accuracy`?"),
    ],
)
def test_a_misspelt_key_names_its_full_path_and_its_nearest_neighbour(changes: dict[str, Any], line: str) -> None:
    assert refusal(**changes) == f"jobs/pets.yaml: {line}"


def test_a_neighbour_is_taken_from_the_same_source_not_from_another_kind() -> None:
    text = refusal(labeller__source={"kind": "digits", "label_colum": "x"})
    assert "run.labeller.source.label_colum: no such key" in text
    assert "label_column" not in text


def test_a_key_like_no_other_is_refused_without_a_guess() -> None:
    assert refusal(zzzz=1) == "jobs/pets.yaml: run.zzzz: no such key"


@pytest.mark.parametrize("key", ["name", "task", "student", "labeller", "trainer"])
def test_a_missing_block_is_named(key: str) -> None:
    assert refusal(**{key: None}) == f"jobs/pets.yaml: run.{key}: is missing; add it"


@pytest.mark.parametrize("path", ["task__question", "student__model", "labeller__source", "trainer__phases"])
def test_a_missing_key_is_named_with_its_path(path: str) -> None:
    assert f"run.{path.replace('__', '.')}: is missing; add it" in refusal(**{path: None})


def test_two_problems_are_both_reported_one_on_each_line() -> None:
    lines = refusal(nmae="x", device__max_new_tokens=0, trainer__phases=phase(epochs=-1)).splitlines()
    assert len(lines) == 3
    assert [line.split(": ")[1] for line in lines] == [
        "run.device.max_new_tokens", "run.trainer.phases[0].epochs", "run.nmae",
    ]  # fmt: skip
    assert all(line.startswith("jobs/pets.yaml: ") for line in lines)


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"trainer__batch_size": "many"}, ["run.trainer.batch_size: ", "(got 'many')"]),
        ({"trainer__batch_size": 2.5}, ["run.trainer.batch_size: ", "(got 2.5)"]),
        ({"device__canvas_px": 4}, ["run.device.canvas_px: ", "greater than or equal to 8", "(got 4)"]),
        ({"device": "small"}, ["run.device: ", "(got 'small')"]),
        ({"task__classes": ["cat", "dog"]}, ["run.task.classes: ", "each item of the list must be one"]),
        ({"task__kind": "detect"}, ["run.task.kind: ", "'classify' or 'extract'", "(got 'detect')"]),
        ({"student__revision": "main"}, ["run.student.revision: ", "(got 'main')"]),
        ({"name": "Pets of Ours"}, ["run.name: ", "(got 'Pets of Ours')"]),
        ({"name": "x" * 41}, ["run.name: "]),
        ({"version": "../latest"}, ["run.version: ", "(got '../latest')"]),
        ({"labeller__source": {"kind": "ftp"}}, ["run.labeller.source: ", "'ftp'", "'digits'", "'folder'"]),
        ({"labeller__source": {}}, ["run.labeller.source: "]),
        ({"labeller__source": {"kind": "folder"}}, ["run.labeller.source.path: is missing; add it"]),
        ({"trainer__phases": []}, ["run.trainer.phases: "]),
        ({"trainer__phases": phase(train=[])}, ["run.trainer.phases[0].train: "]),
        ({"trainer__phases": phase(train=["ears"])}, ["run.trainer.phases[0].train[0]: ", "(got 'ears')"]),
        ({"quantiser__types": ["q3_k"]}, ["run.quantiser.types[0]: ", "(got 'q3_k')"]),
        ({"quantiser__types": []}, ["run.quantiser.types: "]),
        ({"quantiser__mmproj": "q4_0"}, ["run.quantiser.mmproj: ", "(got 'q4_0')"]),
        ({"evaluator__gates": {"min_accuracy": 90}}, ["run.evaluator.gates.min_accuracy: ", "(got 90)"]),
    ],
)
def test_a_wrong_value_is_named_with_its_path_and_the_value(changes: dict[str, Any], parts: list[str]) -> None:
    text = refusal(**changes)
    assert len(text.splitlines()) == 1
    for part in parts:
        assert part in text


@pytest.mark.parametrize("marker", ["<__media__>", "<image>", "<end_of_utterance>", "<|im_start|>"])
def test_a_question_with_a_token_of_the_layout_is_refused(marker: str) -> None:
    assert marker in refusal(task__question=f"What is {marker}?")


def test_an_empty_question_is_refused() -> None:
    assert "run.task.question: is empty" in refusal(task__question="  \n")


def asked(*questions: dict[str, str], **keys: Any) -> dict[str, Any]:
    """Changes that give the recipe these `questions`; `keys` are more keys of the task."""
    return {"task__questions": list(questions), **{f"task__{key}": value for key, value in keys.items()}}


def test_questions_may_have_every_placeholder_braces_and_no_placeholder_at_all() -> None:
    run = check(**asked({"ask": "{label} {classes} {description}", "answer": "{{{label}}}"}, {"ask": "What?", "answer": "Yes."}))
    assert [question.answer for question in run.task.questions] == ["{{{label}}}", "Yes."]
    assert check(**asked({"ask": "What?"})).task.questions[0].answer == "{label}"


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("What {lable}?", "{lable} is no placeholder; did you mean {label}?"),
        ("What {desc}?", "{desc} is no placeholder; did you mean {description}?"),
        ("What {class}?", "{class} is no placeholder; did you mean {classes}?"),
        ("What {xyz}?", "{xyz} is no placeholder; there are {label}, {description}, {classes}"),
        ("What {}?", "{} is no placeholder; there are"),
        ("What {label.__class__}?", "{label.__class__} is no placeholder"),
        ("What {label[0]}?", "{label[0]} is no placeholder"),
        ("What {label!r}?", "{label!r} is no placeholder"),
        ("What {label:>9}?", "{label:>9} is no placeholder"),
        ("What {label?", "a brace is alone; write {{ for { and }} for }"),
        ("What label}?", "a brace is alone"),
        (" \n", "is empty"),
        ("", "is empty"),
        ("What is <__media__>?", "holds <__media__>"),
        ("What is <image>?", "holds <image>"),
        ("What?<end_of_utterance>", "holds <end_of_utterance>"),
        ("<|im_start|>What?", "holds <|im_start|>"),
    ],
)
@pytest.mark.parametrize("key", ["ask", "answer"])
def test_a_template_that_cannot_be_filled_in_is_refused_with_its_place(key: str, template: str, message: str) -> None:
    text = refusal(**asked({"ask": "Good?"}, {"ask": "Other?", key: template}))
    assert text.startswith(f"jobs/pets.yaml: run.task.questions[1].{key}: {message}") and len(text.splitlines()) == 1


def test_a_key_of_a_question_has_a_neighbour() -> None:
    assert "run.task.questions[0].anser: no such key; did you mean `answer`?" in refusal(**asked({"ask": "What?", "anser": "x"}))
    assert "run.task.questions[0].ask: is missing; add it" in refusal(**asked({"answer": "x"}))


def test_a_description_that_is_asked_for_must_be_there() -> None:
    classes = {"cat": "a cat", "dog": " "}
    assert check(**asked({"ask": "What?"}, classes=classes)).task.questions
    text = refusal(**asked({"ask": "What?"}, {"ask": "And?", "answer": "{description}"}, classes=classes))
    assert "questions[1].answer: has {description}, and class 'dog' has none; describe it" in text


def test_a_description_with_a_token_of_the_layout_is_refused_where_it_would_be_learnt() -> None:
    classes = {"cat": "a cat", "dog": "a dog, like <image>"}
    assert check(**asked({"ask": "What?"}, classes=classes)).task.questions, "the teacher may read it"
    text = refusal(**asked({"ask": "Like {description}?"}, classes=classes))
    assert "the description of 'dog' holds <image>" in text and "questions[0].ask asks for it" in text


def test_the_shipped_question_is_taught_no_second_answer() -> None:
    assert "questions[0].ask: is `question`" in refusal(**asked({"ask": "Which animal?", "answer": "{description}"}))
    assert "questions[0].ask: is `question`" in refusal(**asked({"ask": "{classes}?"}, question="cat, dog?"))
    assert "questions[0].ask: is `question`" in refusal(**asked({"ask": "A {label}?"}, question="A dog?"))


def test_a_question_that_is_there_twice_is_refused() -> None:
    text = refusal(**asked({"ask": "What?"}, {"ask": "And?"}, {"ask": "What?", "answer": "{label}"}))
    assert "questions[2]: is there already; remove it" in text
    assert len(check(**asked({"ask": "What?"}, {"ask": "What?", "answer": "{description}"})).task.questions) == 2


def test_how_many_questions_an_image_gets_means_nothing_without_questions() -> None:
    text = refusal(task__questions_per_image=2)
    assert text == "jobs/pets.yaml: run.task.questions_per_image: there are no questions to choose from; remove it"
    assert check(**asked({"ask": "What?"}, questions_per_image=2)).task.questions_per_image == 2
    assert "questions_per_image" not in check().model_dump()["task"]


FIELDS = {"kind": "extract", "classes": {}, "fields": {"n": {"type": "integer", "description": "how many"}},
          "question": 'As {"n": 1}'}  # fmt: skip


def test_an_extract_task_may_be_asked_in_other_words() -> None:
    others = {"ask": "How many? As {{}}"}, {"ask": "How many?", "answer": "They are {label}."}
    run = check(**asked(*others, **FIELDS), labeller__source={"kind": "records", "path": "labels.jsonl"})
    assert [question.answer for question in run.task.questions] == ["{label}", "They are {label}."]
    assert "questions[0].ask: is `question`" in refusal(**asked({"ask": 'As {{"n": 1}}'}, **FIELDS))


@pytest.mark.parametrize(
    ("question", "key", "name"),
    [({"ask": "Is it {label}?"}, "ask", "{label}"), ({"ask": "Which of {classes}?"}, "ask", "{classes}"),
     ({"ask": "What?", "answer": "{label}: {description}"}, "answer", "{description}")],
)  # fmt: skip
def test_other_words_of_an_extract_task_have_only_the_answer_to_fill_in(question: dict[str, str], key: str, name: str) -> None:
    text = refusal(**asked({"ask": "So?"}, question, **FIELDS))
    assert f"questions[1].{key}: {name} is nothing that fields have; remove it" in text


def test_an_extract_task_has_no_label_to_reason_for() -> None:
    assert "run.task.answer: only kind: classify has a label to reason for" in refusal(**asked(**FIELDS, answer="reasoning"))


@pytest.mark.parametrize("name", ["", " cat", "ca\nt", 'c"at', "c\\at", "<cat>"])
def test_a_class_name_that_a_grammar_cannot_quote_is_refused(name: str) -> None:
    assert "run.task.classes: class name" in refusal(task__classes={name: "", "dog": ""})


def test_class_names_that_differ_only_in_case_are_refused() -> None:
    assert "differ only in case" in refusal(task__classes={"cat": "", "Cat": ""})


@pytest.mark.parametrize("classes", [{}, {"cat": "a cat"}])
def test_a_classify_task_needs_two_classes(classes: dict[str, str]) -> None:
    assert "at least two classes" in refusal(task__classes=classes)


def test_shares_that_do_not_add_up_say_their_sum() -> None:
    text = refusal(labeller__split={"train": 0.8, "validation": 0.1, "test": 0.2})
    assert "run.labeller.split: train + validation + test is 1.1; it must be 1" in text


@pytest.mark.parametrize("key", ["part_learning_rates", "targets"])
def test_a_setting_of_a_frozen_part_is_refused(key: str) -> None:
    value = {"vision": 1e-5} if key == "part_learning_rates" else {"vision": ["q_proj"]}
    text = refusal(trainer__phases=phase(**{key: value}))
    assert f"{key}.vision: vision is not in train ['text']" in text


@pytest.mark.parametrize(("key", "value"), [("rank", 16), ("alpha", 8), ("dropout", 0.0), ("targets", {"text": ["q_proj"]})])
def test_a_key_of_lora_is_refused_in_a_full_phase_even_with_its_default(key: str, value: Any) -> None:
    text = refusal(trainer__phases=[*phase(**{key: value}), *phase(method="full", **{key: value})])
    assert text == f"jobs/pets.yaml: run.trainer.phases[1].{key}: only a lora phase has it; remove it, or set method: lora"


def test_all_keys_without_a_meaning_are_told_at_once() -> None:
    text = refusal(trainer__phases=phase(method="full", rank=4, alpha=8), student__seed=1, student__model="./here")
    assert [line.split(": ")[1] for line in text.splitlines()] == [
        "run.student.seed", "run.trainer.phases[0].rank", "run.trainer.phases[0].alpha",
    ]  # fmt: skip


@pytest.mark.parametrize("model", ["tiny", "./models/mine", "/models/mine", "~/mine", "models/sub/mine", "mine"])
def test_a_revision_is_refused_where_there_is_none(model: str) -> None:
    text = refusal(student={"model": model, "revision": "0" * 40})
    assert text == f"jobs/pets.yaml: run.student.revision: only a Hub id has one, and model is {model!r}; remove it"


@pytest.mark.parametrize("model", ["owner/name", "./models/mine"])
def test_a_seed_is_refused_where_weights_are_not_random(model: str) -> None:
    assert "run.student.seed: only model: tiny has random weights; remove it" in refusal(student={"model": model, "seed": 0})
    assert check(student={"model": "tiny", "seed": 3}).student.seed == 3


def test_a_least_confidence_is_refused_where_the_source_has_none() -> None:
    text = refusal(labeller__min_confidence=0.5)
    assert text == "jobs/pets.yaml: run.labeller.min_confidence: images of source digits have no confidence; remove it"
    assert "source folder" in refusal(labeller={"source": {"kind": "folder", "path": "."}, "min_confidence": 0.5})
    assert check(labeller={"source": {"kind": "digits"}, "min_confidence": None}).labeller.min_confidence is None
    records = {"source": {"kind": "records", "path": "x.json"}, "min_confidence": 0.5}
    assert check(labeller=records).labeller.min_confidence == 0.5


@pytest.mark.parametrize("model", ["tiny", "./models/mine", "owner/name"])
@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_recipe_written_with_all_its_defaults_is_read_again(model: str, method: str, tmp_path: Path) -> None:
    run = check(student__model=model, trainer__phases=phase(method=method))
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump({"run": run.model_dump(mode="json")}))
    again = read_run_file(path).run
    assert again == run and again.model_dump() == run.model_dump()


def test_a_part_named_twice_is_refused() -> None:
    assert "a part is named twice" in refusal(trainer__phases=phase(train=["text", "text"]))


def test_a_micro_batch_that_does_not_divide_the_batch_says_both_numbers() -> None:
    text = refusal(trainer__batch_size=16, trainer__micro_batch_size=5)
    assert "run.trainer: micro_batch_size: 5 does not divide batch_size 16" in text


def test_a_type_named_twice_is_refused() -> None:
    assert "run.quantiser.types: a type is named twice" in refusal(quantiser__types=["q8_0", "q8_0"])


def test_the_second_phase_is_named_by_its_number() -> None:
    text = refusal(trainer__phases=[*phase(), *phase(rank=0)])
    assert "run.trainer.phases[1].rank: " in text


TITLE = {"title": {"type": "string", "description": "a title"}}


def extract(**keys: Any) -> dict[str, Any]:
    """A change to a task of kind extract; `keys` are keys of the task."""
    source = {"kind": "records", "path": "x.jsonl"}
    return {"task": {"kind": "extract", "fields": TITLE, "question": 'As {"title": "..."}', **keys}, "labeller__source": source}


def of_values(kind: str, values: list[Any]) -> dict[str, Any]:
    return {"v": {"type": kind, "description": "one of few", "values": values}}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task__kind": "extract"}, "run.task.classes"),
        (extract(fields={}), "an extract task needs at least one field"),
        (extract(fields={"a title": TITLE["title"]}), "'a title' must be a letter, then letters"),
        (extract(fields=[TITLE, TITLE]), "a field is named twice"),
        (extract(answer="reasoning"), "run.task.answer: only kind: classify"),
        (extract(fields={"n": {"type": "integer", "description": "a number", "max_length": 5}}), "max_length"),
        (extract(fields={"b": {"type": "boolean", "description": "yes or no", "values": [1]}}), "values: a field of type bool"),
        (extract(fields=of_values("integer", [0, "1"])), "values: '1' is no whole number, as a field of type integer has"),
        (extract(fields=of_values("string", [0, 1])), "values: 0 is no text, as a field of type string has; write its quotes"),
        (extract(fields=of_values("list", ["a", 1])), "values: 1 is no text"),
        (extract(fields=of_values("integer", [True])), "run.task.fields.v.values: True is neither a text"),
        (extract(fields=of_values("string", [1.0])), "values: 1.0 is neither a text nor a whole number"),
        (extract(fields=of_values("string", ["Red", "red"])), "differs from another only in case"),
        (extract(fields=of_values("string", [" red"])), "values: ' red' holds"),
        (extract(fields=of_values("string", ["<image>"])), "values: '<image>' holds"),
        ({"task__prompt_template": "<image>{image}{question}"}, "prompt_template: holds <image>; write {image}"),
        ({"task__fields": TITLE}, "run.task.fields: only kind: extract has fields; remove it"),
        ({"task__reasons": ["{description}"]}, "run.task.reasons: only answer: reasoning has them; remove it"),
        ({"task__answer": "reasoning", "task__reasons": ["{descripton}"]}, "did you mean {description}?"),
        ({"task__answer": "reasoning", "task__reasons": ["two\nlines"]}, "a reason is one line"),
        ({"task__system": "You are <image>."}, "run.task.system: holds <image>"),
        ({"task__system": " "}, "run.task.system: is empty"),
    ],
)
def test_a_task_that_contradicts_itself_is_refused_by_its_key(changes: dict[str, Any], message: str) -> None:
    assert message in refusal(**changes)


def test_fields_instructions_and_reasons_are_read() -> None:
    assert check(**extract()).task.fields["title"].type == "string"
    run = check(task__answer="reasoning", task__reasons=["It is {description}."], task__system="You are a vet.")
    assert (run.task.answer, run.task.system) == ("reasoning", "You are a vet.")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labeller__teacher": {"model": "gpt-4o"}, "labeller__max_cost_usd": 5.0}, "the price of gpt-4o is not known"),
        ({"labeller__max_cost_usd": 5.0}, "run.labeller.max_cost_usd: there is no teacher"),
        ({"labeller__min_agreement": 0.5, "labeller__teacher": {"model": "m"}}, "min_agreement: one vote always agrees"),
        ({"labeller__teacher": {"model": "m", "batch_poll_s": 5}}, "batch_poll_s: only way: batch has it"),
        ({"labeller__teacher": {"model": "m", "way": "batch", "in_flight": 5}}, "in_flight: only way: live has it"),
        ({"labeller__teacher": {"model": "m", "base_url": "http://me:secret@vllm/v1"}}, "holds a user or password"),
        ({"labeller__source": {"kind": "hub"}}, "set either dataset (on the Hub) or path (Parquet files)"),
        ({"labeller__source": {"kind": "hub", "path": "x", "revision": "0" * 40}}, "revision: only a dataset of the Hub has it"),
        ({"labeller__source": {"kind": "unsplash", "queries": ["sea"], "lite": "x", "snapshot": "y"}}, "only the API has it"),
        ({"labeller__source": {"kind": "coco", "fetch": {"paralel": 3}}}, "paralel: no such key; did you mean `parallel`?"),
        ({"task__classes": {"none": "x", "some": "y"}, "labeller__teacher": {"model": "m"}}, "none is what a teacher"),
    ],
)  # fmt: skip
def test_settings_of_sources_and_teachers_that_cannot_be_meant_are_refused(changes: dict[str, Any], message: str) -> None:
    assert message in refusal(**changes)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no `run:` block; put the recipe under `run:`"),
        ("- run\n", "has no `run:` block; put the recipe under `run:`"),
        ("recipe: {name: pets}\n", "has no `run:` block; put the recipe under `run:`"),
        ("run: {name: [\n", "is not YAML"),
        ("run:\n\tname: pets\n", "is not YAML"),
        ("run: pets\n", "run: "),
        ("run:\n", "run: "),
    ],
)
def test_a_file_that_is_no_run_file_says_so_and_names_itself(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "pets.yaml"
    path.write_text(text)
    with pytest.raises(RunFileError) as error:
        read_run_file(path)
    assert str(error.value).startswith(f"{path}: ")
    assert message in str(error.value)


def test_a_file_that_is_not_there_says_so(tmp_path: Path) -> None:
    with pytest.raises(RunFileError, match="cannot be read"):
        read_run_file(tmp_path / "nothing.yaml")


def test_a_file_that_is_no_text_says_so(tmp_path: Path) -> None:
    path = tmp_path / "pets.yaml"
    path.write_bytes(b"run: \xff\xfe\x00")
    with pytest.raises(RunFileError, match=r"pets\.yaml: "):
        read_run_file(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("run:\n  name: pets\n  task: {}\n  name: cats\n", "line 4: the key `name` is there already, in line 2; remove one"),
        ("run: {}\nchart: {a: 1, 'a': 2}\n", "line 2: the key `a` is there already, in line 2; remove one"),
        ("run:\n  name: pets\nrun:\n  name: cats\n", "line 3: the key `run` is there already, in line 1; remove one"),
    ],
)
def test_a_key_that_is_there_twice_is_refused_with_its_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "pets.yaml"
    path.write_text(text)
    with pytest.raises(RunFileError) as error:
        read_run_file(path)
    assert str(error.value) == f"{path}: {message}"


def test_a_block_may_build_on_another_one(tmp_path: Path) -> None:
    path = tmp_path / "pets.yaml"
    text = yaml.safe_dump({"run": recipe(trainer__phases=[])}).replace("phases: []", """phases:
    - &first {method: full, train: [text], epochs: 2}
    - {<<: *first, epochs: 1}""")
    path.write_text(text)
    assert [phase.epochs for phase in read_run_file(path).run.trainer.phases] == [2, 1]


def test_yaml_cannot_make_objects(tmp_path: Path) -> None:
    path = tmp_path / "pets.yaml"
    path.write_text("run: !!python/object/apply:os.system ['true']\n")
    with pytest.raises(RunFileError, match="is not YAML"):
        read_run_file(path)


def mount(folder: Path, text: str) -> Path:
    """A ConfigMap as the kubelet mounts it: links that are exchanged whole when it changes."""
    data = folder / "..2026_11_21_10_00_00.123456789"
    data.mkdir(parents=True)
    (data / "run.yaml").write_text(text)
    (folder / "..data").symlink_to(data.name)
    (folder / "run.yaml").symlink_to("..data/run.yaml")
    return folder / "run.yaml"


def test_a_run_file_can_come_from_a_config_map_with_its_run_block_alone(tmp_path: Path) -> None:
    path = mount(tmp_path / "etc", yaml.safe_dump({"run": recipe()}))
    found = read_run_file(path)
    assert found.run == check()
    assert found.folder == tmp_path / "etc", "relative paths start where the file is mounted, not where its bytes lie"


def test_a_relative_path_in_a_mounted_run_file_starts_at_its_folder(tmp_path: Path) -> None:
    path = mount(tmp_path / "etc", yaml.safe_dump({"run": recipe(labeller__source={"kind": "folder", "path": "../images"})}))
    for name in CLASSES:
        (tmp_path / "images" / name).mkdir(parents=True)
        (tmp_path / "images" / name / "a.png").write_bytes(b"x")
    found = read_run_file(path)
    assert len(open_source(found.run.labeller.source, Context(found.folder, list(CLASSES)))) == 2


def test_numbers_mean_the_same_after_helm_has_written_them(tmp_path: Path) -> None:
    """Helm reads every number as float64, and Go writes large and small ones with an exponent and no point."""
    written = recipe(trainer__phases=phase(learning_rate=1.0e-5), labeller__max_pixels=50_000_000)
    text = yaml.safe_dump({"run": written}).replace("1.0e-05", "1e-05").replace("50000000", "5e+07")
    assert "1e-05" in text and "5e+07" in text
    path = tmp_path / "run.yaml"
    path.write_text(text)
    assert read_run_file(path).run == Recipe.model_validate(written)
