"""The command that says what a new llama.cpp changes: what it compares, what it refuses, and that it can fail."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import families
import pytest

from bench.families import RECORD, differences, main

ROW = {"prompt_tokens": 28, "layout_nats": 0.0025, "text_mb": 1.91}


def test_each_number_that_is_another_is_a_line_and_so_is_a_family_that_came_or_went() -> None:
    before = {"llama_cpp": "a" * 40, "families": {"A": ROW, "B": ROW, "C": ROW}}
    now = {"llama_cpp": "b" * 40, "families": {"A": ROW, "B": {**ROW, "prompt_tokens": 29, "text_mb": 2.0}, "D": ROW}}
    assert differences(before, now) == [
        "the record is of llama.cpp aaaaaaaaa, this is bbbbbbbbb", "  B: prompt_tokens was 28, is 29",
        "  B: text_mb was 1.91, is 2.0",
        "  C: is gone", "  D: is new",
    ]  # fmt: skip
    assert differences(before, before) == ["the record is of the same llama.cpp", "  nothing differs"]


@pytest.mark.parametrize(("arguments", "said"), [
    (["NoVLM"], "there is no NoVLM"), (["SmolVLM", "--write"], "leave their names out"),
])  # fmt: skip
def test_a_family_that_is_none_and_a_record_of_some_are_refused(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    record = RECORD.read_bytes()
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2 and said in capsys.readouterr().err
    assert RECORD.read_bytes() == record


@pytest.mark.llamacpp
def test_every_family_is_measured_before_those_that_cannot_be_end_it_with_an_error(
    built: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Planted: a tokenizer of which the converter cannot tell how it cuts, and one that writes small what llama.cpp does not."""
    faults = {"SmolVLM": {"pre_tokenizer": None}, "Idefics3": {"normalizer": {"type": "Lowercase"}}}
    for name, fault in faults.items():
        monkeypatch.setitem(families.BUILDERS, name, spoilt(families.BUILDERS[name], fault))
    assert main([*faults]) == 1
    said = capsys.readouterr().out
    assert "SmolVLM      convert_hf_to_gguf.py failed" in said
    assert re.search(r"^Idefics3     llama-server counts \d+ prompt tokens, not \d+$", said, re.MULTILINE)
    assert "not measured: SmolVLM, Idefics3;" in said


def spoilt(build: Callable[[Path, int], None], fault: dict[str, Any]) -> Callable[[Path, int], None]:
    def faulty(folder: Path, seed: int) -> None:
        build(folder, seed)
        path = folder / "tokenizer.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **fault}))

    return faulty
