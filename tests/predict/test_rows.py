"""Rows as a table, as JSON lines, as CSV."""

from __future__ import annotations

import csv
import io
import json

from pocketvlm.predict.answer import Prediction
from pocketvlm.predict.rows import COLUMNS, open_rows

SURE = Prediction("a.png", "seven", "seven", 0.98765432, 12.345, text="seven")
UNSURE = Prediction("b.png", None, "three", 0.4, 11.0, text="three")
FIELDS = Prediction("c.png", {"is_food": 1, "drink_items": []}, {"is_food": 1, "drink_items": []}, 0.9, 5.0, text="{}")
NONSENSE = Prediction("d.png", None, None, 0.2, 5.0, text='{"is_food": 1, "dri')
REASONED = Prediction("e.png", "dune", "dune", 0.8, 50.0, reason="Ripples, everywhere.", text="...")
FAILED = Prediction("f.png", error="has no bytes (empty_file)")
ALL = [SURE, UNSURE, FIELDS, NONSENSE, REASONED, FAILED]


def written(format: str, rows: list[Prediction] = ALL, longest: int = 5) -> str:
    stream = io.StringIO()
    writer = open_rows(format, stream, longest)
    for row in rows:
        writer.write(row)
    return stream.getvalue()


def test_json_lines_keep_what_the_model_said_apart_from_what_is_to_be_shown() -> None:
    assert [json.loads(line) for line in written("jsonl").splitlines()] == [
        {"image": "a.png", "answer": "seven", "best": "seven", "confidence": 0.987654, "ms": 12.35},
        {"image": "b.png", "answer": None, "best": "three", "confidence": 0.4, "ms": 11.0},
        {"image": "c.png", "answer": FIELDS.best, "best": FIELDS.best, "confidence": 0.9, "ms": 5.0},
        {"image": "d.png", "answer": None, "best": None, "confidence": 0.2, "ms": 5.0, "text": '{"is_food": 1, "dri'},
        {"image": "e.png", "answer": "dune", "best": "dune", "confidence": 0.8, "ms": 50.0, "reason": "Ripples, everywhere."},
        {"image": "f.png", "error": "has no bytes (empty_file)"},
    ]


def test_csv_has_one_header_for_every_task() -> None:
    rows = list(csv.DictReader(io.StringIO(written("csv"))))
    assert tuple(rows[0]) == COLUMNS
    assert [row["answer"] for row in rows] == ["seven", "?", '{"is_food":1,"drink_items":[]}', "?", "dune", ""]
    assert [row["best"] for row in rows][1:4] == ["three", '{"is_food":1,"drink_items":[]}', '{"is_food": 1, "dri']
    assert (rows[4]["reason"], rows[5]["error"]) == ("Ripples, everywhere.", "has no bytes (empty_file)")


def test_the_table_says_what_it_is_not_sure_of() -> None:
    lines = written("table").splitlines()
    assert lines[0].split() == ["image", "confidence", "ms", "answer"]
    assert lines[1].split() == ["a.png", "0.9877", "12.3", "seven"]
    assert lines[2].endswith("? (three)")
    assert lines[5].endswith("dune  because: Ripples, everywhere.")
    assert len(lines) == len(ALL)  # with the header, without the failed one


def test_the_table_hides_from_the_terminal_what_it_would_obey_and_cuts_long_names_at_their_beginning() -> None:
    evil = Prediction("x" * 100 + "\x1b[2Jend.png", "a\nb", "a\nb", 0.9, 1.0, text="a\nb")
    line = written("table", [evil], longest=120).splitlines()[1]
    assert "\x1b" not in line
    assert line.startswith("…xxx")
    assert "end.png " in line
    assert line.endswith("a�b")


def test_a_prediction_reads_as_its_answer() -> None:
    assert [str(row) for row in ALL[:3]] == ["seven", "? (three)", '{"is_food":1,"drink_items":[]}']
    assert str(FAILED) == "error: has no bytes (empty_file)"
    assert [row.unsure for row in ALL] == [False, True, False, True, False, False]
