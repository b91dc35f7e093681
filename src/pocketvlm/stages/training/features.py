"""What the text model is fed with: features computed once while the vision tower is frozen, else tiles.

Features are kept between pixel shuffle and connector. The pass over all images is done in whole batches before the
phase: filling a cache image by image inside the loop was measured to be slower than having none (mlx-vlm #976).
Shapes as in student/forward.py; F different tiles of a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from pocketvlm.stages.training.samples import Samples
from pocketvlm.stages.training.spool import BUDGET_BYTES, Spool
from pocketvlm.student import forward
from pocketvlm.student.scoring import EncodedImage

TILES_AT_ONCE = 16
"""A tile of 512 px takes 1,024 patches through the tower: 16 fill a GPU and take 0.5 GB of activations in fp32."""


class Features:
    """The images of one split for one phase."""

    def __init__(self, samples: Samples, device: torch.device, cached_NTC: Tensor | None) -> None:
        """Without cached_NTC every batch brings its tiles and the vision tower runs on them."""
        self.samples = samples
        self.device = device
        rows = samples.tiles_NHWC if cached_NTC is None else cached_NTC
        self.cached = cached_NTC is not None
        # On the device if it fits: no copying in the loop.
        self._rows = rows.to(device) if rows.nbytes <= BUDGET_BYTES else rows
        self._ids_MS = samples.ids_MS.to(device)
        self._labels_MS = samples.labels_MS.to(device)

    def batch(self, numbers: Sequence[int]) -> dict[str, Tensor]:
        """Arguments of `Learner.forward` for these samples, on the device."""
        rows, _ = self.samples.tile_rows(numbers)
        return {**self.text(numbers), ("features_FTC" if self.cached else "tiles_FHWC"): self._take(rows)}

    def text(self, numbers: Sequence[int]) -> dict[str, Tensor]:
        """The same without the images."""
        longest = max(self.samples.lengths[number] for number in numbers)
        at = torch.tensor(list(numbers), device=self.device)
        _, layout = self.samples.tile_rows(numbers)
        return {
            "ids_BS": self._ids_MS[at, :longest],
            "labels": self._labels_MS[at, :longest],
            "layout": torch.tensor(layout, device=self.device),
        }

    def of(self, model: Any, numbers: Sequence[int]) -> Tensor:
        """features_FTC of these samples' images, without gradients: the tower sees few tiles at once.

        32 images of 17 tiles each would take it 17 GB.
        """
        rows, _ = self.samples.tile_rows(numbers)
        if self.cached:
            return self._take(rows)
        with torch.no_grad():
            parts = (rows[start : start + TILES_AT_ONCE] for start in range(0, len(rows), TILES_AT_ONCE))
            return torch.cat([tower(model, self._take(part)) for part in parts])

    def encoded(self, numbers: Sequence[int], features_FTC: Tensor) -> list[EncodedImage]:
        """The samples as scoring takes them; features_FTC are what `of` gave for them."""
        images = self.samples.images_of(numbers)
        counts = [self.samples.first[image + 1] - self.samples.first[image] for image in images]
        features = dict(zip(images, torch.split(features_FTC, counts), strict=True))
        at, places = self.samples.images, self.samples.places
        return [EncodedImage(self.samples.prompt(n), features[at[n]], places[at[n]]) for n in numbers]

    def _take(self, rows: list[int]) -> Tensor:
        return self._rows[torch.tensor(rows, device=self._rows.device)].to(self.device)


def tower(model: Any, tiles_FHWC: Tensor) -> Tensor:
    """features_FTC of uint8 tiles."""
    dtype = next(model.model.vision_model.parameters()).dtype
    return forward.vision_features(model, forward.normalise(tiles_FHWC, dtype))


@torch.no_grad()
def compute(
    model: Any, tiles_NHWC: Tensor, device: torch.device, spool: Spool, report: Callable[[int, int], None]
) -> Tensor:
    """features_NTC of all tiles, on the CPU; `report` is told tiles done and tiles in all, and may raise."""
    for start in range(0, len(tiles_NHWC), TILES_AT_ONCE):
        spool.append(tower(model, tiles_NHWC[start : start + TILES_AT_ONCE].to(device)).cpu())
        report(min(start + TILES_AT_ONCE, len(tiles_NHWC)), len(tiles_NHWC))
    return spool.finish()
