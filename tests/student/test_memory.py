"""What `plan` says of memory, beside the peak of the tensors of a real optimiser step of the tiny student."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pocketvlm.student.tiny import tiny_config

ROOT = Path(__file__).parents[2]
WITHIN = 0.15
LORA, FULL, VISION = "lora text, kept features", "full connector and text, kept features", "full, vision too"


@pytest.mark.parametrize(
    ("recipe", "precision", "passes"),
    [
        (LORA, "fp32", 1), (LORA, "bf16", 1), (f"{LORA}, activations computed twice", "fp32", 1),
        (FULL, "fp32", 2), (FULL, "bf16", 1), (VISION, "fp32", 1),
    ],
)  # fmt: skip
def test_the_peak_of_a_step_is_within_fifteen_per_cent_of_the_estimate(
    monkeypatch: pytest.MonkeyPatch, tokenizer: Any, recipe: str, precision: str, passes: int
) -> None:
    monkeypatch.syspath_prepend(ROOT)
    from bench.memory import measure

    found = measure(tiny_config(tokenizer), recipe, batch=2, precision=precision, passes=passes)
    assert found["ratio"] == pytest.approx(1, abs=WITHIN), found
