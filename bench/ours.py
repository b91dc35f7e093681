"""Our side: the trainer's own parts, from PNG bytes to the last optimiser step, and the scorer."""

from __future__ import annotations

from typing import Any

import torch

from bench.clock import Spent, measured
from bench.setting import Setting
from pocketvlm.stages.training import features
from pocketvlm.stages.training.batches import Order
from pocketvlm.stages.training.features import Features
from pocketvlm.stages.training.learner import Learner
from pocketvlm.stages.training.loop import Loop, Rules, parameter_groups
from pocketvlm.stages.training.plan import plan_phases
from pocketvlm.stages.training.samples import read_samples
from pocketvlm.stages.training.schedule import factor
from pocketvlm.stages.training.spool import Spool
from pocketvlm.stages.training.team import Team
from pocketvlm.student import adapters
from pocketvlm.student.checkpoint import load_model


def text_targets(setting: Setting, model: Any) -> list[str]:
    """Paths of the linear layers that get adapters: ours and the tuned rival's."""
    return adapters.resolve_targets(model, setting.geometry.family, setting.trainer.phases[0])


def train(setting: Setting, number: int) -> Spent:
    """A whole training: decode, cut, tokenise, vision features, all epochs. Loading the weights is not counted."""
    phase, family = setting.trainer.phases[0], setting.geometry.family
    device = torch.device(setting.device)
    model = load_model(setting.checkpoint)
    adapters.inject(model, text_targets(setting, model), rank=phase.rank, alpha=phase.alpha, dropout=phase.dropout)
    learner = Learner(model, family, setting.precision).to(device)
    scratch = setting.folder / f"ours-{number}"
    scratch.mkdir()
    with measured(round(setting.images * phase.epochs)) as spent:
        samples = read_samples(
            setting.dataset, "train", setting.encoder, setting.eye, spool=Spool(scratch / "tiles.bin"),
            threads=torch.get_num_threads(), check=lambda: None,
        )  # fmt: skip
        spool = Spool(scratch / "features.bin")
        with measured(setting.images) as cache:
            rows = features.compute(family, model, samples.tiles, device, spool, lambda done, total: None)
        images = Features(samples, family, device, rows)
        images.hold()
        (plan,) = plan_phases(setting.trainer, len(samples))
        rules = Rules(
            seed=(0, 0), max_grad_norm=setting.trainer.max_grad_norm,
            factor=lambda step: factor(phase, step, steps=plan.steps, steps_per_epoch=plan.steps_per_epoch),
        )  # fmt: skip
        loop = Loop(
            learner, parameter_groups(model, family, phase), images,
            Order(samples.lengths, batch_size=setting.batch_size, seed=(0, 0)), Team(device), rules,
            micro_batch_size=setting.batch_size,
        )  # fmt: skip
        with measured(len(samples)) as steps:
            for step in range(1, plan.steps + 1):
                loop.step(step)
            losses = loop.take_losses()
    spent.notes = {
        "tokens": max(samples.lengths), "first_loss": losses[0], "steps": len(losses),
        "feature_seconds_an_image": round(cache.seconds_each, 4), "loop_seconds": round(steps.seconds, 3),
    }  # fmt: skip
    return spent
