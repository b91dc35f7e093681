"""What `plan` says of memory, beside the peak of the tensors of a real optimiser step of the tiny student."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pocketvlm.student.tiny import tiny_config

ROOT = Path(__file__).parents[2]
WITHIN = 0.15


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(
    "recipe",
    [
        "lora text, kept features",
        "lora text, kept features, activations computed twice",
        "full connector and text, kept features",
        "full, vision too",
    ],
)
@pytest.mark.parametrize("passes", [1, 2])
def test_the_peak_of_a_step_is_within_fifteen_per_cent_of_the_estimate(
    monkeypatch: pytest.MonkeyPatch, tokenizer: Any, recipe: str, precision: str, passes: int
) -> None:
    monkeypatch.syspath_prepend(ROOT)
    from bench.memory import measure

    found = measure(tiny_config(tokenizer), recipe, batch=4, precision=precision, passes=passes)
    assert found["ratio"] == pytest.approx(1, abs=WITHIN), found


def test_an_estimate_without_the_activations_would_be_found_out(monkeypatch: pytest.MonkeyPatch, tokenizer: Any) -> None:
    monkeypatch.syspath_prepend(ROOT)
    from bench.memory import measure

    few, many = (measure(tiny_config(tokenizer), "lora text, kept features", batch=batch, precision="fp32") for batch in (1, 4))
    assert many["peak"] > (1 + WITHIN) / (1 - WITHIN) * few["peak"]
