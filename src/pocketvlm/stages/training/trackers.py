"""Experiment trackers: what the curve has, as it comes. Off unless the run file names one.

TensorBoard's event files hold times and host names, so they are no part of the artifact: they go to
`runs/<run>/tensorboard/` in the store, where `tensorboard --logdir` reads them.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from pocketvlm.artifacts.run_record import run_id
from pocketvlm.artifacts.store import Store
from pocketvlm.errors import UserError
from pocketvlm.run_file import Recipe, Trackers

Tracker = Callable[[int, Mapping[str, float]], None]
"""Is told the step and the numbers of a point of the curve."""


def check_trackers(trackers: Trackers) -> None:
    """Raises UserError for a tracker whose package is not installed."""
    for name in ("tensorboard", "wandb", "mlflow"):
        if getattr(trackers, name) and importlib.util.find_spec(name) is None:
            raise UserError(f"run.trainer.trackers.{name}: needs the package {name}; `pip install {name}`, or remove the key")


@contextmanager
def open_trackers(recipe: Recipe, folder: Path, phase: int) -> Iterator[list[Tracker]]:
    """The trackers of one phase; what they write goes below `folder`. Closed at the end."""
    trackers = recipe.trainer.trackers
    folder = folder / f"phase-{phase}"
    found: list[Tracker] = []
    with ExitStack() as stack:
        if trackers.tensorboard:
            found.append(_tensorboard(folder, stack))
        if trackers.wandb:
            folder.mkdir(parents=True, exist_ok=True)
            wandb: Any = importlib.import_module("wandb")
            run = wandb.init(project=trackers.wandb, name=f"{recipe.name}-phase-{phase}", dir=str(folder))
            # An open run would also take what the next phase logs, and a stopped process would leave it as crashed.
            stack.callback(run.finish)
            found.append(lambda step, numbers: run.log(dict(numbers), step=step))
        if trackers.mlflow:
            mlflow: Any = importlib.import_module("mlflow")
            mlflow.set_tracking_uri(trackers.mlflow)
            stack.enter_context(mlflow.start_run(run_name=f"{recipe.name}-phase-{phase}"))
            found.append(lambda step, numbers: mlflow.log_metrics(dict(numbers), step=step))
        yield found


def _tensorboard(folder: Path, stack: ExitStack) -> Tracker:
    from torch.utils.tensorboard import SummaryWriter

    untyped: Any = SummaryWriter
    writer = untyped(log_dir=str(folder))
    stack.callback(writer.close)

    def log(step: int, numbers: Mapping[str, float]) -> None:
        for name, value in numbers.items():
            writer.add_scalar(f"train/{name}", value, step)

    return log


def upload_events(recipe: Recipe, folder: Path, store: Store) -> None:
    """Puts TensorBoard's event files into the store; each attempt has files of its own."""
    if recipe.trainer.trackers.tensorboard:
        for path in sorted(folder.rglob("events.out.tfevents.*")):
            store.upload(path, f"runs/{run_id(recipe)}/tensorboard/{path.relative_to(folder).as_posix()}")
