"""A base of 8 or 4 bits: what can be shown of it without CUDA. tests/gpu trains on one."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from pocketvlm.run_file import Phase
from pocketvlm.stages.training.learner import Learner, Precision
from pocketvlm.stages.training.phase import shape_of
from pocketvlm.student import adapters
from pocketvlm.student.checkpoint import load_model
from pocketvlm.student.families import read_geometry
from pocketvlm.student.tiny import TILE_PX, build_tiny


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_what_learns_is_fp32_though_peft_made_it_in_bf16(tmp_path: Path, precision: Precision) -> None:
    folder = build_tiny(tmp_path / "tiny", seed=0, longest_edge_px=TILE_PX)
    model: Any = load_model(folder)
    family, phase = read_geometry(folder).family, Phase(train=["text"], rank=2)
    adapters.inject(model, adapters.resolve_targets(model, family, phase), rank=2, alpha=4, dropout=0.0)
    for parameter in adapters.trained_tensors(model).values():
        parameter.data = parameter.data.bfloat16()
    Learner(model, family, precision)
    assert {parameter.dtype for parameter in adapters.trained_tensors(model).values()} == {torch.float32}


def test_the_shape_of_a_packed_weight_is_that_of_what_it_holds() -> None:
    packed = torch.nn.Parameter(torch.zeros(64, 1, dtype=torch.uint8), requires_grad=False)
    assert shape_of(packed) == (64, 1)
    packed.quant_state = SimpleNamespace(shape=torch.Size([16, 8]))  # type: ignore[attr-defined]
    assert shape_of(packed) == (16, 8)
