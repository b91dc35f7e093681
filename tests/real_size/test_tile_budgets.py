"""Larger tile budgets: the grid that llama.cpp cuts is the one that the student is trained on."""

from __future__ import annotations

from typing import Any

import pytest

from pocketvlm.student.tiny import TILE_PX, build_tiny

pytestmark = pytest.mark.real_size
MAX_NATS = 0.01
SIZES = [(32, 32), (1, 1), (96, 40), (40, 96), (333, 100), (100, 333), (500, 120), (65, 64), (64, 65), (1000, 37)]


@pytest.fixture(scope="module", params=[2 * TILE_PX, 4 * TILE_PX])
def sides(request: pytest.FixtureRequest, both_sides: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    checkpoint = build_tiny(tmp_path_factory.mktemp("tiny") / "tiny", seed=0, longest_edge_px=request.param)
    with both_sides(checkpoint, request.param) as sides:
        yield sides


@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
def test_grids_agree_in_tokens_and_answers(sides: Any, noise: Any, size: tuple[int, int]) -> None:
    compared = sides.compare(noise(*size))
    assert compared.device_tokens == compared.tokens
    assert compared.nats() <= MAX_NATS


def test_the_sizes_cover_many_grids(sides: Any) -> None:
    eye = sides.student.eye
    cuts = [eye.layout(size) for size in SIZES]
    side = eye.longest_edge_px // eye.tile_px
    assert {(cut.rows, cut.cols) for cut in cuts} >= {(side, side), (1, side), (side, side // 2), (side // 2, side)}


def test_text_becomes_the_same_tokens(sides: Any) -> None:
    device, ours = sides.text_ids()
    assert device == ours
