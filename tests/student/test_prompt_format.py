"""The bytes that stand behind ids as a number only: who changes them has to raise it, or old work is taken for new.

A pinned digest is changed together with its number: `PROMPT_FORMAT` for prompts and grammars, `FORMATS["datasets"]` for answers,
which are a column of the dataset.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from typing import Any

from pocketvlm.artifacts.manifest import FORMATS
from pocketvlm.llamacpp.grammar import RULES
from pocketvlm.run_file import Task
from pocketvlm.student.families.table import FAMILIES
from pocketvlm.student.prompt import answer_lead
from pocketvlm.student.tasks import PROMPT_FORMAT, kind_of

PROMPTS = {
    2: {
        "SmolVLM": "bbc1acde3b7b7df1",
        "Idefics3": "bbc1acde3b7b7df1",
        "LFM2-VL": "2a1c8218a997fcc2",
        "Qwen2-VL": "01579d13e6e2bc12",
        "Qwen2.5-VL": "01579d13e6e2bc12",
        "Qwen3-VL": "99e236450a250930",
        "Qwen3.5": "d534adca57cc35ee",
    },
}
"""PROMPT_FORMAT -> family -> digest of its prompts. A new family is a new row and raises nothing."""
GRAMMARS = {2: "67055005af1ce5ca"}
"""PROMPT_FORMAT -> digest of grammars and schemas."""
ANSWERS = {3: "f80221d8e7863ffd"}
"""FORMATS["datasets"] -> digest of answers."""

LABELS: dict[str, Any] = {"classes": [{"no": "a cross"}, {"yes": "a tick"}], "question": "Yes\nor no?"}
FIELDS: list[dict[str, Any]] = [
    {"n": {"type": "integer", "values": [0, 1], "description": ""}}, {"x": {"type": "number", "description": ""}},
    {"sure": {"type": "boolean", "description": ""}}, {"title": {"type": "string", "max_length": 9, "description": ""}},
    {"items": {"type": "list", "max_items": 2, "max_length": 5, "description": ""}},
    {"kinds": {"type": "list", "values": ["a", "\u00e9"], "description": ""}},
]  # fmt: skip
LABEL, REASONING = Task.model_validate(LABELS), Task.model_validate({**LABELS, "answer": "reasoning"})
EXTRACT = Task.model_validate({"kind": "extract", "fields": FIELDS, "question": "As JSON."})
VALUES = '{"kinds": ["\u00e9"], "items": [], "title": "a \\"b\\"\\n", "sure": true, "x": 2.0, "n": 1}'


def digest(texts: Iterable[str]) -> str:
    return hashlib.sha256(json.dumps(list(texts)).encode()).hexdigest()[:16]


def test_prompts_do_not_change_under_one_number() -> None:
    tasks = [LABEL, LABEL.model_copy(update={"system": "You look."}), EXTRACT]
    found = {}
    for family in FAMILIES.values():
        prompts = [family.template.of(task) for task in tasks]
        bos = family.template.bos or ""
        found[family.name] = digest([*prompts, *map(answer_lead, prompts), bos, family.template.end, family.image_token])
    assert {PROMPT_FORMAT: found} == PROMPTS, "raise PROMPT_FORMAT in student/tasks/kind.py and pin the new digests beside it"


def test_grammars_do_not_change_under_one_number() -> None:
    """Those of fields are made by llama.cpp, whose commit is in the ids, of a schema and by rules that are ours."""
    texts = [str(kind_of(task).grammar(lead)) for task in (LABEL, REASONING) for lead in ("", " ")]
    ours = [json.dumps(kind_of(EXTRACT).schema()), json.dumps(RULES)]
    assert {PROMPT_FORMAT: digest([*texts, *ours])} == GRAMMARS, "raise PROMPT_FORMAT and pin the new digest beside it"


def test_answers_do_not_change_under_one_number() -> None:
    answers = [kind_of(LABEL).answer("yes"), kind_of(REASONING).answer("yes", " a \n tick "), kind_of(EXTRACT).answer(VALUES)]
    assert {FORMATS["datasets"]: digest(answers)} == ANSWERS, "raise FORMATS['datasets'] and pin the new digest beside it"
