"""Experiment trackers, through the HF Trainer's own callbacks. Off unless the run file names one."""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path
from typing import Any

from pocketvlm.errors import UserError
from pocketvlm.run_file import Recipe, Trackers


def open_trackers(recipe: Recipe, folder: Path) -> list[Any]:
    """Callbacks for the HF Trainer; TensorBoard's event files go into `folder`.

    Raises UserError for a tracker whose package is not installed.
    """
    trackers = recipe.trainer.trackers
    _check(trackers)
    callbacks: list[Any] = []
    if trackers.tensorboard:
        from torch.utils.tensorboard import SummaryWriter
        from transformers.integrations import TensorBoardCallback

        writer: Any = SummaryWriter  # untyped upstream
        callbacks.append(TensorBoardCallback(writer(log_dir=str(folder))))
    if trackers.wandb:
        from transformers.integrations import WandbCallback

        importlib.import_module("wandb").init(project=trackers.wandb, name=recipe.name, dir=str(folder))
        callbacks.append(WandbCallback())
    if trackers.mlflow:
        from transformers.integrations import MLflowCallback

        importlib.import_module("mlflow").set_tracking_uri(trackers.mlflow)
        callbacks.append(MLflowCallback())
    return callbacks


def _check(trackers: Trackers) -> None:
    for name in ("tensorboard", "wandb", "mlflow"):
        if getattr(trackers, name) and importlib.util.find_spec(name) is None:
            raise UserError(f"run.trainer.trackers.{name}: needs the package {name}; `pip install {name}`, or remove the key")
