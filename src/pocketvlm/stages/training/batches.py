"""Which samples an optimiser step trains on: it depends on the seed and the step only, so that a resume finds the same.

Numbers of samples are those of stages/training/samples.py: a number beyond the split is a sample seen in another of its looks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

POOL_BATCHES = 32
"""Lengths are sorted inside random pools of this many batches: near-equal batches, and still another mix each epoch."""
NEAR = 8
"""Lengths that differ by less than this part of the longest count as equal. Names of classes take one token more or less: sorted
by that, whole batches have one class (tiny student, 8 things, 96 steps, one seed: accuracy 0.70, in random order 1.00)."""


class Order:
    """The steps of a phase. Each takes `batch_size` samples of near-equal lengths; the smaller rest of an epoch comes last."""

    def __init__(
        self, lengths: Sequence[int], *, batch_size: int, seed: Sequence[int], classes: Sequence[str] | None = None,
        images: Sequence[int] | None = None, looks: int = 1,
    ) -> None:  # fmt: skip
        """With `classes`, that of each sample, every epoch has all classes equally often. Each epoch takes the next of an image's
        `looks`; `images` has the number of each sample's image."""
        longest = max(lengths, default=0)
        # In steps, counted from the longest.
        self._lengths = (longest - np.asarray(lengths)) // max(1, longest // NEAR)
        self._batch_size, self._seed = batch_size, list(seed)
        self._classes = None if classes is None else np.asarray(classes)
        self._looks, self._images = looks, None if images is None else np.asarray(images)
        self._epoch: tuple[int, list[list[int]]] = (-1, [])

    @property
    def steps_per_epoch(self) -> int:
        """The smaller rest counted."""
        return -(-len(self._lengths) // self._batch_size)

    def of_step(self, step: int) -> list[int]:
        """Numbers of the samples of this step, counted from 1."""
        epoch, place = divmod(step - 1, self.steps_per_epoch)
        if self._epoch[0] != epoch:
            self._epoch = epoch, self._of_epoch(epoch)
        return self._epoch[1][place]

    def _of_epoch(self, epoch: int) -> list[list[int]]:
        generator = np.random.default_rng([*self._seed, epoch])
        order = self._drawn(generator)
        whole = len(order) // self._batch_size * self._batch_size
        pool = POOL_BATCHES * self._batch_size
        batches: list[Any] = []
        for start in range(0, whole, pool):
            part = order[start : min(start + pool, whole)]
            part = part[np.argsort(self._lengths[part], kind="stable")]
            batches += np.split(part, len(part) // self._batch_size)
        shuffled = [batches[i] for i in generator.permutation(len(batches))]
        looks = self._looks_of(epoch)
        return [(batch + looks[batch] * len(self._lengths)).tolist() for batch in [*shuffled, order[whole:]] if len(batch)]

    def _drawn(self, generator: np.random.Generator) -> Any:
        """The samples of an epoch in random order: all of them, or all classes equally often."""
        total = len(self._lengths)
        if self._classes is None:
            return generator.permutation(total)
        names = np.unique(self._classes)
        # Which classes get one sample more where the total cannot be divided: others each epoch.
        quotas = dict.fromkeys(names, total // len(names))
        for name in generator.permutation(names)[: total % len(names)]:
            quotas[name] += 1
        drawn = []
        for name, quota in quotas.items():
            own = np.flatnonzero(self._classes == name)
            # Whole rounds through the class: none of its samples comes twice more often than another.
            rounds = [generator.permutation(own) for _ in range(-(-quota // len(own)))]
            drawn.append(np.concatenate(rounds)[:quota])
        return generator.permutation(np.concatenate(drawn))

    def _looks_of(self, epoch: int) -> Any:
        """For each sample, the look of its image in this epoch: all looks in turn, in an order of the image's own."""
        if self._looks == 1 or self._images is None:
            return np.zeros(len(self._lengths), dtype=np.int64)
        lap, turn = divmod(epoch, self._looks)
        generator = np.random.default_rng([*self._seed, lap, self._looks])
        orders = generator.permuted(np.tile(np.arange(self._looks), (int(self._images.max()) + 1, 1)), axis=1)
        return orders[self._images, turn]


def micro_batches(numbers: Sequence[int], size: int) -> list[list[int]]:
    """A step's samples in pieces of at most `size`."""
    return [list(numbers[start : start + size]) for start in range(0, len(numbers), size)]
