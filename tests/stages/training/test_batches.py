"""The order of samples, and tensors larger than memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from pocketvlm.run_file import Trainer
from pocketvlm.stages.training.batches import NEAR, Order, micro_batches
from pocketvlm.stages.training.plan import plan_phases
from pocketvlm.stages.training.spool import Spool


def batches(lengths: list[int], *, epoch: int = 0, seed: int = 0, **more: Any) -> list[list[int]]:
    order = Order(lengths, batch_size=8, seed=(seed, 0), **more)
    first = epoch * order.steps_per_epoch + 1
    return [order.of_step(step) for step in range(first, first + order.steps_per_epoch)]


def test_every_sample_comes_once_an_epoch_and_the_smaller_batch_last() -> None:
    got = batches([1] * 43)
    assert sorted(number for batch in got for number in batch) == list(range(43))
    assert [len(batch) for batch in got] == [8] * 5 + [3]
    assert [len(part) for part in micro_batches(got[0], 3)] == [3, 3, 2]
    assert [number for part in micro_batches(got[0], 3) for number in part] == got[0]


def test_order_follows_from_seed_and_epoch_alone() -> None:
    lengths = [i % 7 for i in range(50)]
    assert batches(lengths, epoch=3) == batches(lengths, epoch=3)
    assert batches(lengths, epoch=3) != batches(lengths, epoch=4)
    assert batches(lengths, seed=1) != batches(lengths, seed=2)


def test_near_equal_lengths_are_together() -> None:
    lengths = [(i * 37) % 100 for i in range(64)]
    spread = [max(lengths[i] for i in batch) - min(lengths[i] for i in batch) for batch in batches(lengths)]
    assert max(spread) <= 2 * (99 // NEAR), "64 lengths up to 99, in sorted batches of 8"


def test_names_of_one_token_more_or_less_do_not_sort_the_classes_into_batches() -> None:
    lengths = [33 + i % 4 for i in range(64)]
    mixed = [len({lengths[i] for i in batch}) for batch in batches(lengths)]
    assert min(mixed) > 1 and sum(mixed) > 2.5 * len(mixed)


def test_validations_are_whole_steps_and_the_last_step_is_one() -> None:
    settings = Trainer.model_validate({"phases": [{"epochs": 2.5}, {"epochs": 1}], "batch_size": 8, "validate_every": 0.5,
                                       "checkpoint_every_steps": 4})  # fmt: skip
    first, second = plan_phases(settings, samples=37)
    assert (first.steps, second.steps, second.steps_before, second.steps_of_all) == (13, 5, 13, 18)
    assert sorted(first.validations) == [2, 5, 8, 10, 12, 13]
    assert sorted(first.checkpoints) == [4, 8, 12]
    assert [first.samples_after(step) for step in (1, 4, 5, 6)] == [8, 32, 37, 45]


@pytest.mark.parametrize("dtype", [torch.uint8, torch.bfloat16, torch.float32])
def test_tensor_above_the_budget_lies_in_a_file_and_is_the_same(tmp_path: Path, dtype: torch.dtype) -> None:
    rows = [torch.arange(n * 6).view(n, 2, 3).to(dtype) for n in (1, 3, 2, 5)]
    small, large = Spool(tmp_path / "small"), Spool(tmp_path / "large", budget_bytes=rows[0].nbytes + 1)
    for part in rows:
        small.append(part)
        large.append(part)
    expected = torch.cat(rows)
    assert torch.equal(small.finish(), expected) and torch.equal(large.finish(), expected)
    assert not (tmp_path / "small").exists()
    assert (tmp_path / "large").stat().st_size == expected.nbytes


def test_balanced_classes_come_equally_often_and_none_of_their_samples_twice_more_than_another() -> None:
    classes = ["rare"] * 5 + ["common"] * 38
    for epoch in (0, 1):
        drawn = [number for batch in batches([1] * 43, epoch=epoch, classes=classes) for number in batch]
        assert len(drawn) == 43, "an epoch is as long as the split"
        rare = [number for number in drawn if number < 5]
        assert len(rare) in (21, 22)
        counts = [rare.count(number) for number in range(5)]
        assert max(counts) - min(counts) <= 1
        assert len(set(drawn) - set(rare)) == 43 - len(rare), "no frequent one twice"
    assert batches([1] * 43, classes=classes) == batches([1] * 43, classes=classes)


def test_every_image_is_seen_in_each_of_its_looks_before_one_comes_again() -> None:
    # 10 images with two samples each, and 3 looks: numbers go up to 60.
    images = [number // 2 for number in range(20)]
    seen: dict[int, list[int]] = {sample: [] for sample in range(20)}
    for epoch in range(6):
        for number in (number for batch in batches([1] * 20, epoch=epoch, images=images, looks=3) for number in batch):
            seen[number % 20].append(number // 20)
    assert all(sorted(looks[:3]) == sorted(looks[3:]) == [0, 1, 2] for looks in seen.values())
    assert all(seen[sample] == seen[sample + 1] for sample in range(0, 20, 2)), "samples of an image share its look"
    assert len({tuple(looks) for looks in seen.values()}) > 1, "not all images in the same order"
