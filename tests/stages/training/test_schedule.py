"""Rates by step: those of transformers' schedules of the same names."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import ValidationError
from transformers import get_scheduler

from pocketvlm.run_file import Phase
from pocketvlm.stages.training.schedule import factor, warmup_steps

STEPS = 24


@pytest.mark.parametrize(
    ("settings", "name", "more"),
    [
        ({"schedule": "linear"}, "linear", {}),
        ({"schedule": "linear", "warmup_steps": 5}, "linear", {}),
        ({"schedule": "cosine", "warmup_steps": 3}, "cosine", {}),
        ({"schedule": "constant", "warmup_steps": 4}, "constant_with_warmup", {}),
        ({"schedule": "inverse_sqrt", "warmup_steps": 4}, "inverse_sqrt", {}),
        ({"schedule": "cosine_with_restarts"}, "cosine_with_restarts", {"num_cycles": 3}),
    ],
)
def test_rates_are_those_of_transformers(settings: dict[str, Any], name: str, more: dict[str, Any]) -> None:
    phase = Phase.model_validate(settings)
    optimiser = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs = get_scheduler(name, optimiser, num_warmup_steps=phase.warmup_steps, num_training_steps=STEPS,
                           scheduler_specific_kwargs=more)  # fmt: skip
    for step in range(1, STEPS + 1):
        assert factor(phase, step, steps=STEPS, steps_per_epoch=8) == pytest.approx(theirs.get_last_lr()[0], abs=1e-12)
        optimiser.step()
        theirs.step()


def test_a_share_of_the_steps_is_warm_up() -> None:
    assert warmup_steps(Phase(warmup_share=0.1), 24) == 3
    assert warmup_steps(Phase(warmup_steps=7), 24) == 7


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"warmup_steps": 3, "warmup_share": 0.1}, "warmup_share: warmup_steps is set too"),
        ({"schedule": "inverse_sqrt"}, "set warmup_steps or warmup_share"),
    ],
)
def test_a_warm_up_that_cannot_be_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Phase.model_validate(settings)


@pytest.mark.parametrize("rate", [-1e-4, float("nan"), float("inf")])
def test_a_rate_of_a_part_that_is_none_is_refused(rate: float) -> None:
    with pytest.raises(ValidationError, match=r"part_learning_rates\.text: \S+ is no rate"):
        Phase.model_validate({"train": ["text"], "part_learning_rates": {"text": rate}})
