"""How many tiles the vision tower sees at once, and that it makes no difference."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from pocketvlm.stages.training.features import TILES_AT_ONCE, Features
from pocketvlm.stages.training.samples import Samples
from pocketvlm.student.checkpoint import load_model
from pocketvlm.student.families import FAMILIES
from pocketvlm.student.tiny import build_tiny

FAMILY = FAMILIES["SmolVLMForConditionalGeneration"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return load_model(build_tiny(tmp_path_factory.mktemp("features") / "tiny", seed=0, longest_edge_px=32))


def samples(images: int, tiles: int) -> Samples:
    """Images of so many different tiles each."""
    ids_MS = torch.zeros(images, 3, dtype=torch.long)
    tiles_NHWC = torch.randint(0, 256, (images * tiles, 32, 32, 3), generator=torch.manual_seed(0)).to(torch.uint8)
    return Samples(ids_MS, ids_MS, [3] * images, [1] * images, list(range(images)), tiles_NHWC,
                   list(range(0, images * tiles + 1, tiles)), [list(range(tiles))] * images, ["one"] * images)  # fmt: skip


def test_the_tower_never_sees_all_tiles_of_many_images_at_once(model: Any) -> None:
    seen: list[int] = []
    tower_of_model = model.model.vision_model
    handle = tower_of_model.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(len(kwargs["pixel_values"])), with_kwargs=True
    )
    many = samples(images=5, tiles=7)
    features_FTC = Features(many, FAMILY, torch.device("cpu"), None).of(model, [4, 0, 2, 1])
    handle.remove()
    assert seen == [TILES_AT_ONCE, 28 - TILES_AT_ONCE] and not features_FTC.requires_grad
    with torch.no_grad():
        expected = [FAMILY.features(model, many.tiles[7 * image : 7 * image + 7]) for image in (4, 0, 2, 1)]
    torch.testing.assert_close(features_FTC, torch.cat(expected))


def test_features_that_are_kept_are_taken_as_they_are(model: Any, tmp_path: Path) -> None:
    many = samples(images=3, tiles=2)
    kept = torch.arange(6.0).reshape(6, 1, 1)
    assert Features(many, FAMILY, torch.device("cpu"), kept).of(model, [2, 0]).flatten().tolist() == [4, 5, 0, 1]


@pytest.mark.parametrize(("largest", "whole"), [(24, 1), (23, 0)])
def test_all_images_go_to_the_device_when_they_are_held_and_are_not_too_many(
    monkeypatch: pytest.MonkeyPatch, largest: int, whole: int
) -> None:
    monkeypatch.setattr("pocketvlm.stages.training.features.HELD_BYTES", largest)
    features = Features(samples(images=3, tiles=2), FAMILY, torch.device("meta"), torch.arange(6.0).reshape(6, 1, 1))
    moved: list[int] = []
    move = torch.Tensor.to
    monkeypatch.setattr(torch.Tensor, "to", lambda tensor, device: (moved.append(len(tensor)), move(tensor, device))[1])
    batch = features.batch([0])["features_FTC"]
    assert batch.device.type == "meta" and moved == [2]
    features.hold()
    assert moved[1:] == [6] * whole and features.held_bytes == 24 * whole
    assert features.batch([0])["features_FTC"].shape == batch.shape
