"""Which layers the targets of a LoRA phase name: one rule, asked by plan of names and shapes, by the trainer of a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import SmolVLMForConditionalGeneration

from pocketvlm.errors import UserError
from pocketvlm.run_file import Phase
from pocketvlm.safetensors_header import read_file
from pocketvlm.student import adapters
from pocketvlm.student.checkpoint import load_model
from pocketvlm.student.families import FAMILIES, HEAD, lora_targets, read_geometry
from pocketvlm.student.published import SIZES, build_published_tokenizer, published_config

FAMILY = FAMILIES["SmolVLMForConditionalGeneration"]


def linear_modules(model: Any) -> set[str]:
    return {path for path, module in model.named_modules() if isinstance(module, nn.Linear)}


def by_plan(folder: Path, phase: Phase) -> tuple[list[str], list[str]]:
    geometry = read_geometry(folder)
    shapes = {name: entry.shape for name, entry in read_file(folder / "model.safetensors").entries.items()}
    layers = FAMILY.linear_layers(shapes, tied_head=geometry.tied_head)
    return lora_targets(FAMILY, layers, phase, tied_head=geometry.tied_head)


@pytest.fixture(params=["tiny", "tied_tiny"])
def folder(request: pytest.FixtureRequest) -> Path:
    found: Path = request.getfixturevalue(request.param)
    return found


def test_names_and_shapes_tell_which_tensors_are_linear_layers(folder: Path) -> None:
    geometry = read_geometry(folder)
    shapes = {name: entry.shape for name, entry in read_file(folder / "model.safetensors").entries.items()}
    assert set(FAMILY.linear_layers(shapes, tied_head=geometry.tied_head)) == linear_modules(load_model(folder))


def test_they_tell_it_of_a_published_student_too() -> None:
    with torch.device("meta"):
        model = SmolVLMForConditionalGeneration(published_config(SIZES["256M"], build_published_tokenizer()))
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    assert set(FAMILY.linear_layers(shapes, tied_head=False)) == linear_modules(model)


def test_a_head_is_tied_where_the_config_says_so(tiny: Path, tied_tiny: Path) -> None:
    assert [read_geometry(folder).tied_head for folder in (tiny, tied_tiny)] == [False, True]
    tied: Any = load_model(tied_tiny)
    assert tied.lm_head.weight is tied.model.text_model.embed_tokens.weight


ALL = {"train": ["vision", "connector", "text"]}


@pytest.mark.parametrize(
    ("phase", "ends"),
    [
        (ALL, None),
        ({"train": ["text"], "targets": {"text": ["mlp.down_proj"]}}, ("mlp.down_proj",)),
        ({"train": ["text"], "targets": {"text": ["q_proj", "self_attn.v_proj"]}}, ("q_proj", "v_proj")),
        ({"train": ["vision"], "targets": {"vision": ["fc1"]}}, ("fc1",)),
        ({"train": ["connector", "text"], "targets": {"connector": ["proj"]}}, None),
    ],
)
def test_plan_and_trainer_name_the_same_layers(folder: Path, phase: dict[str, Any], ends: tuple[str, ...] | None) -> None:
    chosen = Phase.model_validate(phase)
    planned, problems = by_plan(folder, chosen)
    assert problems == []
    trained = adapters.resolve_targets(load_model(folder), FAMILY, chosen)
    assert sorted(planned) == sorted(trained) and len(set(trained)) == len(trained) > 0
    assert HEAD not in trained
    assert ends is None or all(path.endswith(ends) for path in trained)


@pytest.mark.parametrize("target", ["embed_tokens", "q_prj", "down", "norm"])
def test_what_is_no_linear_layer_is_refused_by_both_with_those_that_are(folder: Path, target: str) -> None:
    refused_by_both(folder, {"text": [target]}, rf"targets.text: .* no linear layer '{target}'; it has down_proj, .*q_proj")


def test_a_table_of_positions_is_no_linear_layer(folder: Path) -> None:
    refused_by_both(folder, {"vision": ["position_embedding"]}, r"targets.vision: .* no linear layer 'position_embedding'")


def test_a_head_of_its_own_can_be_a_target_and_a_tied_one_cannot(tiny: Path, tied_tiny: Path) -> None:
    assert by_plan(tiny, Phase.model_validate({"train": ["text"], "targets": {"text": [HEAD]}})) == ([HEAD], [])
    refused_by_both(tied_tiny, {"text": [HEAD]}, r"targets.text: lm_head shares its weights with the embeddings .* remove it")


def refused_by_both(folder: Path, targets: dict[str, list[str]], message: str) -> None:
    phase = Phase.model_validate({"train": list(targets), "targets": targets})
    (problem,) = by_plan(folder, phase)[1]
    with pytest.raises(UserError, match=rf"run\.trainer\.phases\[1\]\.{message}") as caught:
        adapters.resolve_targets(load_model(folder), FAMILY, phase, where="run.trainer.phases[1]")
    assert str(caught.value) == f"run.trainer.phases[1].{problem}"
