"""Batches of near-equal lengths whose order depends on the seed and the epoch only, so that a resume finds the same."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from torch.utils.data import DataLoader, Sampler

from pocketvlm.stages.training.features import Features
from pocketvlm.stages.training.samples import Samples

POOL_BATCHES = 32
"""Lengths are sorted inside random pools of this many batches: near-equal batches, and still another mix each epoch."""


class LengthGroupedBatches(Sampler[list[int]]):
    """Micro-batches of sample numbers. Every `batch_size / micro_batch_size` of them make one optimiser step.

    The samples that fill no whole batch come last, in one smaller batch.
    """

    def __init__(self, lengths: Sequence[int], *, batch_size: int, micro_batch_size: int, seed: Sequence[int]) -> None:
        assert batch_size % micro_batch_size == 0, "the run file is checked for this"
        self._lengths = np.asarray(lengths)
        self._batch_size, self._micro_batch_size = batch_size, micro_batch_size
        self._seed = list(seed)
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Called by the HF Trainer before each epoch."""
        self._epoch = epoch

    def __len__(self) -> int:
        whole, rest = divmod(len(self._lengths), self._batch_size)
        return whole * (self._batch_size // self._micro_batch_size) + -(-rest // self._micro_batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        generator = np.random.default_rng([*self._seed, self._epoch])
        order = generator.permutation(len(self._lengths))
        whole = len(order) // self._batch_size * self._batch_size
        pool = POOL_BATCHES * self._batch_size
        batches: list[Any] = []
        for start in range(0, whole, pool):
            part = order[start : min(start + pool, whole)]
            part = part[np.argsort(self._lengths[part], kind="stable")]
            batches += np.split(part, len(part) // self._batch_size)
        shuffled = [batches[i] for i in generator.permutation(len(batches))]
        for batch in [*shuffled, order[whole:]]:
            for start in range(0, len(batch), self._micro_batch_size):
                yield batch[start : start + self._micro_batch_size].tolist()


class Loader(DataLoader[int]):
    """Gives batches in this process: there is nothing left to do that a worker could take over."""

    def __init__(self, samples: Samples, features: Features, batches: LengthGroupedBatches) -> None:
        numbers: Any = range(len(samples))
        super().__init__(numbers, batch_sampler=batches, collate_fn=features.batch)
        self._batches = batches

    def set_epoch(self, epoch: int) -> None:
        """Called by the HF Trainer before each epoch."""
        self._batches.set_epoch(epoch)
