"""Numbers of answers that are written out, from planted replies: what cannot be read is counted, and is wrong."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from pocketvlm.phone import Reply
from pocketvlm.run_file import Task
from pocketvlm.stages.evaluation.answers import PairRun, join, read_run, write_run
from pocketvlm.stages.evaluation.hf_scoring import HfAnswer, HfAnswers
from pocketvlm.stages.evaluation.measure import PairFiles
from pocketvlm.stages.evaluation.measured import pair_result, run_result, transformers_result
from pocketvlm.student.tasks import TaskKind, kind_of

REASONING = kind_of(Task.model_validate({"classes": {"no": "", "yes": ""}, "question": "So?", "answer": "reasoning"}))
EXTRACT = kind_of(Task.model_validate({"kind": "extract", "question": '{"n":1,"items":[]}', "fields": [
    {"n": {"type": "integer", "description": ""}}, {"items": {"type": "list", "description": ""}}]}))  # fmt: skip
FILES = PairFiles("q8_0", "text-q8_0.gguf", "mmproj-q8_0.gguf", shipped=True, reference=False)


def reply(kind: TaskKind, text: str, tokens: int = 5, stopped: str = "eos") -> Reply:
    """As the phone reads it."""
    said = kind.read(text)
    return Reply(said.label if said else None, said.reason if said else None, f" {text}", [[-0.1, -3.0]] if said else [], 40, 1.0,
                 2.0, tokens, stopped)  # fmt: skip


def reasoned(label: str) -> Reply:
    return reply(REASONING, f"Reasoning: it is so\nAnswer: {label}")


CUT = reply(REASONING, "Reasoning: it is so and so and", 9, "limit")


def run(kind: TaskKind, test: list[Reply], free: list[Reply]) -> PairRun:
    return PairRun(test=test, free=free, blind=[test[-1]] * len(test), text_ids=[[1], [2]])


def test_answers_that_cannot_be_read_are_counted_inside_the_grammar_and_without_it() -> None:
    labels = ["no", "yes", "yes", "no"]
    found = run_result(REASONING, labels, run(
        REASONING, [reasoned("no"), CUT, reasoned("yes"), reasoned("yes")], [reasoned("no"), CUT, CUT, reply(REASONING, "no")]))
    assert found.written is not None
    assert (found.written.valid, found.written.unread) == (0.75, 1)
    assert (found.written.valid_free, found.written.unread_free, found.written.accuracy_free) == (0.25, 3, 0.25)
    assert (found.accuracy, found.correct, found.outside) == (0.5, 2, 1)
    assert found.confusion == [[1, 1, 0], [0, 1, 1]], "what cannot be read is in the last column"
    assert found.tokens is not None and (found.tokens.median, found.tokens.most) == (5, 9)


def test_fields_of_an_answer_that_cannot_be_read_are_wrong_and_its_texts_are_missed() -> None:
    labels = [json.dumps({"n": n, "items": items}, separators=(",", ":")) for n, items in ((1, ["tea"]), (2, []), (3, ["egg"]))]
    said = [reply(EXTRACT, '{"n": 1, "items": ["tea"]}'), reply(EXTRACT, '{"n":2,"items":["a'), reply(EXTRACT, labels[2])]
    found = run_result(EXTRACT, labels, run(EXTRACT, said, [said[1]] * 3))
    assert found.written is not None and (found.written.unread, found.written.valid_free) == (1, 0.0)
    assert found.accuracy == pytest.approx(2 / 3, abs=1e-6), "white space does not matter"
    assert {row.name: row.accuracy for row in found.fields} == dict.fromkeys(("n", "items"), pytest.approx(2 / 3, abs=1e-6))
    assert found.list_f1 == 1.0 and found.fields[1].list is not None
    assert found.fields[1].list.f1_macro == pytest.approx(2 / 3, abs=1e-6)
    assert found.classes == [] and found.calibration_error is None and found.bins == []


def test_two_unreadable_answers_do_not_agree_and_each_wrong_count_of_tokens_is_one() -> None:
    labels = ["no", "yes", "no"]
    merged = [HfAnswer("no", "", tokens=5), HfAnswer(None, "", tokens=9), HfAnswer("yes", "", tokens=5)]
    hf = HfAnswers(merged, [40, 40, 41], [[1], [2]])
    told = run(REASONING, [reasoned("no"), CUT, reasoned("no")], [CUT] * 3)
    found = pair_result(REASONING, labels, FILES, told, hf, 1.0)
    assert (found.prompt_tokens_wrong, found.prompt_ids_equal) == (1, True)
    assert found.agreement == pytest.approx(1 / 3, abs=1e-6)
    assert found.blind is not None and found.blind.accuracy == pytest.approx(2 / 3, abs=1e-6)
    other = pair_result(REASONING, labels, FILES, replace(told, text_ids=[[1], [3]]), hf, 1.0)
    assert not other.prompt_ids_equal
    free = transformers_result(REASONING, labels, hf)
    assert free.written is not None and (free.written.valid, free.written.unread) == (None, None)
    assert free.written.unread_free == 1 and free.written.valid_free == pytest.approx(2 / 3, abs=1e-6)
    assert free.accuracy == pytest.approx(1 / 3, abs=1e-6) and free.tokens is not None and free.tokens.most == 9


@pytest.mark.parametrize("count", [1, 2, 3])
def test_written_answers_of_all_shares_are_those_of_one(count: int, tmp_path: Any) -> None:
    total, parity = 5, [0, 3, 4]
    test, free = ([replace(reasoned("yes"), answer_ms=float(first + n)) for n in range(total)] for first in (0, 100))
    steps = {place: {place: -float(place)} for place in parity}
    shares = []
    for index in range(count):
        own = [steps[place] for place in parity if place % count == index]
        share = PairRun(test[index::count], [], [], free[index::count], [[1]], own, own, {"start_s": 1.0, "threads": 1.0})
        write_run(tmp_path / f"{index}.json", share)
        shares.append(read_run(tmp_path / f"{index}.json"))
    whole = join(shares, total, 0, parity)
    assert (whole.test, whole.free, whole.validation) == (test, free, [])
    assert whole.first_steps == whole.exact_steps == [steps[place] for place in parity]
    assert whole.latency["answer_ms_median"] == 2.0
