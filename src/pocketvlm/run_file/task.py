"""What is asked, how the phone sees it, and which model answers."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_serializer, field_validator, model_validator

from pocketvlm.run_file.block import Block
from pocketvlm.run_file.template import OF_A_PROMPT, fill, placeholders

OneClass = Annotated[dict[str, str], Field(min_length=1, max_length=1)]
MARKERS = (
    "<__media__>", "<image>", "<end_of_utterance>", "<|im_start|>", "<|im_end|>", "<start_of_turn>", "<end_of_turn>",
    "<image_soft_token>", "<|image_pad|>", "<|vision_start|>", "<|vision_end|>",
)  # fmt: skip
"""Tokens of the students' layouts. A text with one of them would be an image, or the end of a turn, to the model."""
IMAGES = ("<__media__>", "<image>", "<image_soft_token>", "<|image_pad|>")
"""Those of them that are an image, or a part of one."""


def marker_in(text: str) -> str | None:
    """The first of MARKERS that the text holds."""
    return next((marker for marker in MARKERS if marker in text), None)


def _refuse_marker(text: str) -> None:
    if marker := marker_in(text):
        raise ValueError(f"holds {marker}, which is placed by the student's prompt; remove it")
    if not text.strip():
        raise ValueError("is empty")


class ExtractField(Block):
    """One field of an `extract` answer."""

    type: Literal["integer", "number", "boolean", "string", "list"]
    """`list`: of texts."""
    description: str
    """What it says of an image, for the teacher."""
    values: list[str | int] = Field(default_factory=list)
    """The only values that it, or each text of a list, may have; default: any of its type."""
    max_length: int | None = Field(default=None, ge=1, le=2000)
    """Characters of a text, or of each text of a list, at most. A longer answer of a teacher is refused; the grammar knows it."""
    max_items: int | None = Field(default=None, ge=1, le=50)
    """Texts of a list at most."""

    def idle(self) -> dict[str, str]:
        able = {"values": ("integer", "string", "list"), "max_length": ("string", "list"), "max_items": ("list",)}
        idle = {key: f"a field of type {self.type} has none; remove it" for key, types in able.items() if self.type not in types}
        return idle | ({"max_length": "`values` are all that is allowed; remove it"} if self.values else {})

    @field_validator("values", mode="before")
    @classmethod
    def _texts_or_whole_numbers(cls, values: Any) -> Any:
        odd = [value for value in values if type(value) not in (str, int)] if isinstance(values, list) else []
        if odd:  # YAML reads yes, no and 1.5 as something else
            raise ValueError(f"{odd[0]!r} is neither a text nor a whole number; put a text in quotes, or take type: boolean")
        return values

    @model_validator(mode="after")
    def _values_can_be_answered(self) -> Self:
        whole = self.type == "integer"
        for value in self.values:
            if isinstance(value, int) != whole:
                raise ValueError(f"values: {value!r} is no {'whole number' if whole else 'text'}, as a field of type {self.type} "
                                 f"has; {'remove' if whole else 'write'} its quotes")  # fmt: skip
            if isinstance(value, str) and (marker_in(value) or value != value.strip()):
                raise ValueError(f"values: {value!r} holds a token of the student's prompt, or white space at an end; correct it")
        if len({str(value).casefold() for value in self.values}) < len(self.values):
            raise ValueError("values: one is there twice, or differs from another only in case; remove it")
        return self


OneField = Annotated[dict[str, ExtractField], Field(min_length=1, max_length=1)]


def _in_order(value: Any, what: str) -> Any:
    """Helm sorts the keys of a mapping. So they are sorted here too: a laptop and a cluster must agree on every id."""
    if isinstance(value, list):
        if not all(isinstance(item, dict) and len(item) == 1 for item in value):
            raise ValueError(f"each item of the list must be one `- name: {'description' if what == 'class' else '{type: ...}'}`")
        merged = {name: item_value for item in value for name, item_value in item.items()}
        if len(merged) < len(value):
            raise ValueError(f"a {what} is named twice")
        return merged
    return dict(sorted(value.items(), key=lambda item: str(item[0]))) if isinstance(value, dict) else value


class Question(Block):
    """Another wording of question and answer, for training. `{label}`, `{description}` (that of the label) and `{classes}` (all
    names) are filled in; `{{` and `}}` are braces. For `extract`, `{label}` is the JSON, and `answer` alone may have it."""

    ask: str
    """The question, for example `Which of these is it: {classes}?`; another one than `task.question`."""
    answer: str = "{label}"
    """What the student learns to answer, for example `{label}: {description}`."""

    @field_validator("ask", "answer")
    @classmethod
    def _sound(cls, template: str) -> str:
        _refuse_marker(template)
        placeholders(template)
        return template


class Task(Block):
    """What is asked of an image, and what may be answered."""

    kind: Literal["classify", "extract"] = "classify"
    """`classify`: one of `classes`. `extract`: a JSON object of `fields`."""
    classes: dict[str, str] = Field(default_factory=dict)
    """Class name -> description for the teacher. A list (`- name: description`) keeps its order, in reports too; a mapping is
    read in the order of its names."""
    fields: dict[str, ExtractField] = Field(default_factory=dict)
    """For `extract`: field name -> what it holds, in the order of the answer's keys. A list (`- name: {...}`) keeps its order; a
    mapping is read in the order of its names."""
    question: str
    """Asked of every image; shipped as part of `prompt.txt`. For `extract`, show the JSON that is wanted."""
    system: str | None = None
    """Instructions before the user's turn; shipped as part of `prompt.txt`."""
    prompt_template: str | None = None
    """The whole prompt with `{system}`, `{image}` and `{question}` in it, special tokens written out; default: the chat layout of
    the student's family. `{{` and `}}` are braces."""
    questions: list[Question] = Field(default_factory=list)
    """More wordings for training. Every image is trained with `question` and its plain answer too, and measured with it alone."""
    questions_per_image: int = Field(default=1, ge=1, le=100)
    """How many of `questions` each training image gets, chosen by its bytes; all, if there are no more."""
    answer: Literal["label", "reasoning"] = "label"
    """`label`: the class name. `reasoning`: two lines, `Reasoning: ...` and `Answer: name`."""
    reasons: list[str] = Field(default_factory=list)
    """For `reasoning`: templates of the reason, each image gets one by its bytes, for example `The picture shows {description}.`;
    `{label}`, `{description}` and `{classes}` are filled in. Default: the reason that the teacher gave."""

    def shipped(self) -> dict[str, Any]:
        """The block for whoever asks the finished model: without what only teacher and training read. It makes a task again."""
        block = self.model_dump(mode="json", exclude={"questions", "questions_per_image", "reasons"})
        if self.classes:
            block["classes"] = [{name: ""} for name in self.classes]
        if self.fields:
            fields = {name: field.model_dump(mode="json") for name, field in self.fields.items()}
            block["fields"] = [{name: {**field, "description": ""}} for name, field in fields.items()]
        return block

    def idle(self) -> dict[str, str]:
        idle = {} if self.questions else {"questions_per_image": "there are no questions to choose from; remove it"}
        if self.kind == "extract":
            idle |= dict.fromkeys(("answer", "reasons"), "only kind: classify has a label to reason for; remove it")
            return idle | ({"classes": "only kind: classify has classes; remove it"} if self.classes else {})
        idle["fields"] = "only kind: extract has fields; remove it"
        return idle if self.answer == "reasoning" else idle | {"reasons": "only answer: reasoning has them; remove it"}

    @field_validator("question", "system")
    @classmethod
    def _no_markers(cls, text: str | None) -> str | None:
        if text is not None:
            _refuse_marker(text)
        return text

    @field_validator("reasons")
    @classmethod
    def _sound_reasons(cls, reasons: list[str]) -> list[str]:
        for template in reasons:
            _refuse_marker(template)
            placeholders(template)
            if "\n" in template:
                raise ValueError("a reason is one line; remove the line break")
        return reasons

    @field_validator("classes", mode="before", json_schema_input_type=list[OneClass] | dict[str, str])
    @classmethod
    def _classes_in_order(cls, value: Any) -> Any:
        return _in_order(value, "class")

    @field_validator("fields", mode="before", json_schema_input_type=list[OneField] | dict[str, ExtractField])
    @classmethod
    def _fields_in_order(cls, value: Any) -> Any:
        return _in_order(value, "field")

    @field_serializer("classes", "fields")
    def _as_list(self, named: dict[str, Any]) -> list[dict[str, Any]]:
        return [{name: value} for name, value in named.items()]

    @field_validator("fields")
    @classmethod
    def _plain_field_names(cls, fields: dict[str, ExtractField]) -> dict[str, ExtractField]:
        for name in fields:
            if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]{0,63}", name):
                raise ValueError(f"field name {name!r} must be a letter, then letters, digits and underscores")
        return fields

    @field_validator("classes")
    @classmethod
    def _plain_names(cls, classes: dict[str, str]) -> dict[str, str]:
        for name in classes:
            if name != name.strip() or not name or re.search(r'[\n"\\<>]', name):
                raise ValueError(
                    f"class name {name!r} must be plain text without quotes, backslash, <, > or line breaks"
                )
        folded = [name.casefold() for name in classes]
        if len(set(folded)) != len(folded):
            raise ValueError("two class names differ only in case")
        return classes

    @model_validator(mode="after")
    def _classes_needed(self) -> Self:
        if self.kind == "classify" and len(self.classes) < 2:
            raise ValueError("classes: a classify task needs at least two classes")
        if self.kind == "extract" and not self.fields:
            raise ValueError("fields: an extract task needs at least one field")
        return self

    @model_validator(mode="after")
    def _template_holds_all(self) -> Self:
        if self.prompt_template is not None:
            names = placeholders(self.prompt_template, OF_A_PROMPT)
            wanted = [name for name in OF_A_PROMPT if name != "system" or self.system is not None]
            if sorted(names) != sorted(wanted):
                must = ", ".join(f"{{{name}}}" for name in wanted)
                raise ValueError(f"prompt_template: must hold each of {must} once, and no other; correct it, or set `system`")
            if marker := next((marker for marker in IMAGES if marker in self.prompt_template), None):
                raise ValueError(f"prompt_template: holds {marker}; write {{image}} where the image goes")
        return self

    @model_validator(mode="after")
    def _questions_of_fields_hold_their_answer_alone(self) -> Self:
        for i, question in enumerate(self.questions if self.fields else []):
            asked = placeholders(question.ask)
            answered = [name for name in placeholders(question.answer) if name != "label"]
            if asked or answered:
                key, name = ("ask", asked[0]) if asked else ("answer", answered[0])
                raise ValueError(f"questions[{i}].{key}: {{{name}}} is nothing that fields have; remove it")
        return self

    @model_validator(mode="after")
    def _questions_are_others(self) -> Self:
        """What is shipped must not be taught a second answer, and nothing twice."""
        names = ", ".join(self.classes)
        for i, question in enumerate(self.questions):
            if question in self.questions[:i]:
                raise ValueError(f"questions[{i}]: is there already; remove it")
            values = [{"label": name, "description": text, "classes": names} for name, text in self.classes.items()] or [{}]
            if any(fill(question.ask, of_class) == self.question for of_class in values):
                raise ValueError(f"questions[{i}].ask: is `question`, which is trained with its plain answer; word it otherwise")
        return self

    @model_validator(mode="after")
    def _descriptions_can_be_learnt(self) -> Self:
        templates = {f"reasons[{i}]": template for i, template in enumerate(self.reasons)}
        for i, question in enumerate(self.questions):
            templates |= {f"questions[{i}].ask": question.ask, f"questions[{i}].answer": question.answer}
        for key, template in templates.items():
            if "description" in placeholders(template):
                for name, text in self.classes.items():
                    if not text.strip():
                        raise ValueError(f"{key}: has {{description}}, and class {name!r} has none; describe it")
                    if marker := marker_in(text):
                        raise ValueError(f"classes: the description of {name!r} holds {marker}, which is placed by the student's "
                                         f"prompt, and {key} asks for it; remove it")  # fmt: skip
        return self


class Device(Block):
    """How the phone sees an image. Read by every stage and shipped in release.json."""

    canvas_px: int | None = Field(default=256, ge=8, le=4096)
    """The app letterboxes every image to this square, black padding. `null`: the image as it is."""
    longest_edge_px: int = Field(default=512, ge=8, le=4096)
    """Tile budget, a multiple of the model's tile. For 512 px tiles: 512 = 2 tiles = 128 visual tokens, 2048 = 17 = 1088."""
    max_new_tokens: int = Field(default=32, ge=1, le=4096)
    """Tokens that the phone may generate for one answer, the end token included."""


class Student(Block):
    """The small VLM that is trained."""

    model: str
    """`tiny` (built in, random weights); a folder; a Hub id such as `HuggingFaceTB/SmolVLM2-500M-Video-Instruct`, fetched once
    into the store; or `models/<id>`, a finished artifact of the store, such as the merged model of another run."""
    revision: str | None = Field(default=None, pattern=r"^[0-9a-f]{40}$")
    """Commit of the Hub id, 40 hex digits; required for a Hub id."""
    seed: int = 0
    """Seed of the random weights of `tiny`, and of no other."""

    def idle(self) -> dict[str, str]:
        idle = {}
        if not is_hub_shaped(self.model):
            idle["revision"] = f"only a Hub id has one, and model is {self.model!r}; remove it"
        if self.model != "tiny":
            idle["seed"] = "only model: tiny has random weights; remove it (that of the training is trainer.seed)"
        return idle


def is_stored(model: str) -> bool:
    """Whether `student.model` names an artifact of the store, `models/<16 hex digits>`."""
    return re.fullmatch(r"models/[0-9a-f]{16}", model) is not None


def is_hub_shaped(model: str) -> bool:
    """Whether `student.model` looks like a Hub id, `owner/name`; a folder of that name comes first."""
    return model.count("/") == 1 and not model.startswith((".", "/", "~")) and not is_stored(model)
