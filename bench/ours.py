"""Our side: the trainer's own parts, from PNG bytes to the last optimiser step, and the scorer."""

from __future__ import annotations

from typing import Any

import torch

from bench.clock import Spent, measured
from bench.setting import Setting
from pocketvlm.stages.training import features, loop
from pocketvlm.stages.training.batches import LengthGroupedBatches, Loader
from pocketvlm.stages.training.features import Features
from pocketvlm.stages.training.learner import Learner
from pocketvlm.stages.training.samples import read_samples
from pocketvlm.stages.training.spool import Spool
from pocketvlm.student import adapters
from pocketvlm.student.checkpoint import load_model
from pocketvlm.student.scoring import Layout

CPU = torch.device("cpu")


def text_targets(setting: Setting, model: Any) -> list[str]:
    """Paths of the linear layers that get adapters: ours and the tuned rival's."""
    return adapters.resolve_targets(model, setting.geometry.family, setting.trainer.phases[0])


def train(setting: Setting, number: int) -> Spent:
    """A whole training: decode, cut, tokenise, vision features, all epochs. Loading the weights is not counted."""
    phase = setting.trainer.phases[0]
    model = load_model(setting.checkpoint)
    adapters.inject(model, text_targets(setting, model), rank=phase.rank, alpha=phase.alpha, dropout=phase.dropout)
    learner = Learner(model, setting.encoder.image_id, setting.precision)
    scratch = setting.folder / f"ours-{number}"
    scratch.mkdir()
    with measured(round(setting.images * phase.epochs)) as spent:
        layout = Layout(setting.geometry.tile_px, setting.geometry.tile_px)
        samples = read_samples(
            setting.dataset, "train", setting.encoder, layout, spool=Spool(scratch / "tiles.bin"),
            threads=torch.get_num_threads(), check=lambda: None,
        )  # fmt: skip
        with measured(setting.images) as cache:
            rows = features.compute(model, samples.tiles_NHWC, CPU, Spool(scratch / "features.bin"), lambda done, total: None)
        batches = LengthGroupedBatches(
            samples.lengths, batch_size=setting.batch_size, micro_batch_size=setting.batch_size, seed=(0, 0)
        )
        trainer = loop.PhaseTrainer(
            learner,
            loop.arguments(setting.trainer, phase, seed=0, folder=scratch / "hf", cpu=True),
            Loader(samples, Features(samples, CPU, rows), batches),
            loop.parameter_groups(model, setting.geometry.family, phase),
            [],
        )
        trainer.train()
    spent.notes = {
        "tokens": max(samples.lengths), "first_loss": float(trainer.losses[0]), "steps": len(trainer.losses),
        "feature_seconds_an_image": round(cache.seconds_each, 4),
    }  # fmt: skip
    return spent
