"""The trainer's blocks of the known recipes: their numbers, and what follows from them."""

from __future__ import annotations

from pathlib import Path

import pytest

from pocketvlm.run_file import Recipe, read_run_file
from pocketvlm.stages.training.plan import plan_phases

JOBS = Path(__file__).parents[3] / "jobs"
ALL = ["vision", "connector", "text"]
KNOWN = {
    "elements": (4, 4, [("lora", ["text"], 3, 2e-4)]),
    "solar": (4, 4, [("full", ALL, 3, 3e-4)]),
    "mars": (4, 4, [("full", ALL, 3, 1e-5)]),
    "food": (8, 4, [("full", ["connector", "text"], 2, 2e-4), ("full", ALL, 2, 2e-6)]),
    "food-lora": (8, 4, [("lora", ["text"], 2, 2e-4)]),
}
"""Samples of a pass, passes of a step, and method, parts, epochs and rate of each phase."""


def recipe(name: str) -> Recipe:
    return read_run_file(JOBS / f"{name}.yaml").run


@pytest.mark.parametrize("name", KNOWN)
def test_a_known_recipe_has_its_numbers(name: str) -> None:
    settings = recipe(name).trainer
    micro, accumulated, phases = KNOWN[name]
    assert (settings.micro_batch_size, settings.batch_size) == (micro, micro * accumulated)
    assert [(p.method, p.train, p.epochs, p.learning_rate) for p in settings.phases] == phases
    steps = [plan.steps for plan in plan_phases(settings, samples=1000)]
    assert steps == [-(-1000 // settings.batch_size) * int(phase[2]) for phase in phases]


def test_adapters_have_the_known_ranks() -> None:
    (elements,), (food,) = recipe("elements").trainer.phases, recipe("food-lora").trainer.phases
    assert (elements.rank, elements.alpha, elements.dropout, elements.full) == (16, 32, 0.0, [])
    assert (food.rank, food.alpha, food.dropout) == (16, 16, 0.05)
    assert sorted(food.full) == ["embed_tokens", "lm_head"]


def test_solar_warms_up_and_decays() -> None:
    (phase,) = recipe("solar").trainer.phases
    assert (phase.warmup_steps, phase.weight_decay, phase.schedule) == (50, 0.01, "linear")


def test_the_two_food_recipes_differ_in_how_they_train_alone() -> None:
    two_stage, lora = (recipe(name).model_dump(mode="json") for name in ("food", "food-lora"))
    assert {key for key in two_stage if two_stage[key] != lora[key]} == {"name", "trainer"}
    assert two_stage["trainer"]["seed"] == lora["trainer"]["seed"] == 42
