"""What the text model is fed with: features computed once while the vision tower is frozen, else tiles.

Where in the model they are taken is the family's to say. The pass over all images is done in whole batches before the
phase: filling a cache image by image inside the loop was measured to be slower than having none (mlx-vlm #976).
Shapes as in student/forward.py; F different tiles of a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from pocketvlm.stages.training.samples import Samples
from pocketvlm.stages.training.spool import Spool
from pocketvlm.student.families import Family
from pocketvlm.student.memory import HELD_BYTES
from pocketvlm.student.prompt import IGNORE
from pocketvlm.student.scoring import EncodedImage

TILES_AT_ONCE = 16
"""A tile of 512 px takes 1,024 patches through the tower: 16 fill a GPU and take 0.5 GB of activations in fp32."""


class Features:
    """The images of one split for one phase."""

    def __init__(self, samples: Samples, family: Family, device: torch.device, cached_NTC: Tensor | None) -> None:
        """Without cached_NTC every batch brings its tiles and the vision tower runs on them."""
        self.samples = samples
        self.family = family
        self.device = device
        rows = samples.tiles if cached_NTC is None else cached_NTC
        self.cached = cached_NTC is not None
        self._rows = rows
        self.held_bytes = rows.nbytes if rows.nbytes <= HELD_BYTES else 0
        """What `hold` takes of the device's memory; 0 for a split that is too large to be held."""
        self._ids_MS = samples.ids_MS.to(device)
        self._labels_MS = samples.labels_MS.to(device)
        self._answer_tokens = (samples.labels_MS != IGNORE).sum(dim=1).tolist()

    def hold(self) -> None:
        """Keeps the images on the device, if they are not too many: no copying in the loop."""
        if self.held_bytes:
            self._rows = self._rows.to(self.device)

    def batch(self, numbers: Sequence[int]) -> dict[str, Tensor]:
        """Arguments of `Learner.forward` for these samples, on the device."""
        rows, _ = self.samples.tile_rows(numbers)
        return {**self.text(numbers), ("features_FTC" if self.cached else "tiles"): self._take(rows)}

    def nothing(self) -> dict[str, Tensor]:
        """A batch of which nothing is learnt, for a process that has no share of a step: its gradients are zeros."""
        batch = self.batch([0])
        return {**batch, "labels": torch.full_like(batch["labels"], IGNORE)}

    def answer_tokens(self, numbers: Sequence[int]) -> int:
        """Tokens that these samples are trained on."""
        return sum(self._answer_tokens[number % len(self.samples)] for number in numbers)

    def text(self, numbers: Sequence[int]) -> dict[str, Tensor]:
        """The same without the images."""
        samples = [number % len(self.samples) for number in numbers]
        longest = max(self.samples.lengths[sample] for sample in samples)
        at = torch.tensor(samples, device=self.device)
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
            return torch.cat([self.family.features(model, self._take(part)) for part in parts])

    def rows_of(self, some: Sequence[int], numbers: Sequence[int], features_FTC: Tensor) -> Tensor:
        """Of features that `of` gave for `numbers`, those of some of them."""
        if len(some) == len(numbers):
            return features_FTC
        place = {row: i for i, row in enumerate(self.samples.tile_rows(numbers)[0])}
        return features_FTC[[place[row] for row in self.samples.tile_rows(some)[0]]]

    def encoded(self, numbers: Sequence[int], features_FTC: Tensor) -> list[EncodedImage]:
        """The samples as scoring takes them; features_FTC are what `of` gave for them."""
        looks = self.samples.looks_of(numbers)
        counts = [self.samples.first[look + 1] - self.samples.first[look] for look in looks]
        features = dict(zip(looks, torch.split(features_FTC, counts), strict=True))
        at, places = self.samples.look_of, self.samples.places
        return [EncodedImage(self.samples.prompt(n), features[at(n)], places[at(n)]) for n in numbers]

    def _take(self, rows: list[int]) -> Tensor:
        return self._rows[torch.tensor(rows, device=self._rows.device)].to(self.device)


@torch.no_grad()
def compute(
    family: Family, model: Any, tiles: Tensor, device: torch.device, spool: Spool, report: Callable[[int, int], None]
) -> Tensor:
    """features_NTC of all tiles, on the CPU; `report` is told tiles done and tiles in all, and may raise."""
    for start in range(0, len(tiles), TILES_AT_ONCE):
        spool.append(family.features(model, tiles[start : start + TILES_AT_ONCE].to(device)).cpu())
        report(min(start + TILES_AT_ONCE, len(tiles)), len(tiles))
    return spool.finish()
