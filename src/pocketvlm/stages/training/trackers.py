"""Experiment trackers, through the HF Trainer's own callbacks. Off unless the run file names one.

TensorBoard's event files hold times and host names, so they are no part of the artifact: they go to
`runs/<run>/tensorboard/` in the store, where `tensorboard --logdir` reads them.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from pocketvlm.artifacts.run_record import run_id
from pocketvlm.artifacts.store import Store
from pocketvlm.errors import UserError
from pocketvlm.run_file import Recipe, Trackers


def check_trackers(trackers: Trackers) -> None:
    """Raises UserError for a tracker whose package is not installed."""
    for name in ("tensorboard", "wandb", "mlflow"):
        if getattr(trackers, name) and importlib.util.find_spec(name) is None:
            raise UserError(f"run.trainer.trackers.{name}: needs the package {name}; `pip install {name}`, or remove the key")


@contextmanager
def open_trackers(recipe: Recipe, folder: Path, phase: int) -> Iterator[list[Any]]:
    """Callbacks for the HF Trainer, for one phase; what they write goes below `folder`. Closed at the end."""
    trackers = recipe.trainer.trackers
    folder = folder / f"phase-{phase}"
    callbacks: list[Any] = []
    with ExitStack() as stack:
        if trackers.tensorboard:
            from torch.utils.tensorboard import SummaryWriter
            from transformers.integrations import TensorBoardCallback

            untyped: Any = SummaryWriter
            writer = untyped(log_dir=str(folder))
            stack.callback(writer.close)
            callbacks.append(TensorBoardCallback(writer))
        if trackers.wandb:
            from transformers.integrations import WandbCallback

            wandb: Any = importlib.import_module("wandb")
            folder.mkdir(parents=True, exist_ok=True)
            run = wandb.init(project=trackers.wandb, name=f"{recipe.name}-phase-{phase}", dir=str(folder))
            # An open run would also take what the next phase logs, and a stopped process would leave it as crashed.
            stack.callback(run.finish)
            callbacks.append(WandbCallback())
        if trackers.mlflow:
            from transformers.integrations import MLflowCallback

            importlib.import_module("mlflow").set_tracking_uri(trackers.mlflow)
            callbacks.append(MLflowCallback())
        yield callbacks


def upload_events(recipe: Recipe, folder: Path, store: Store) -> None:
    """Puts TensorBoard's event files into the store; each attempt has files of its own."""
    if recipe.trainer.trackers.tensorboard:
        for path in sorted(folder.rglob("events.out.tfevents.*")):
            store.upload(path, f"runs/{run_id(recipe)}/tensorboard/{path.relative_to(folder).as_posix()}")
