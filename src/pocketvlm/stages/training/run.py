"""All phases of one training, from the base and the dataset to the files of the checkpoints artifact."""

from __future__ import annotations

import io
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from pocketvlm.artifacts.checkpoint_layout import PhaseRecord, Training, write_curve, write_training
from pocketvlm.errors import DataError, StoreUnavailable
from pocketvlm.progress import Progress
from pocketvlm.run_file import Trainer as Settings
from pocketvlm.stages.stage import Made, Work
from pocketvlm.stages.training import state
from pocketvlm.stages.training.learner import Precision, choose_precision
from pocketvlm.stages.training.phase import Run, run_phase
from pocketvlm.stages.training.plan import plan_phases
from pocketvlm.stages.training.samples import Samples, check_answers, read_samples
from pocketvlm.stages.training.spool import Spool
from pocketvlm.stages.training.stop import Stop
from pocketvlm.stages.training.team import Team, join_team
from pocketvlm.stages.training.trackers import check_trackers, upload_events
from pocketvlm.stages.training.watch import memory_mb
from pocketvlm.student import base
from pocketvlm.student.checkpoint import check_bits
from pocketvlm.student.families import read_geometry
from pocketvlm.student.processor_files import load_tokenizer
from pocketvlm.student.prompt import PromptEncoder

PACKAGES = ("torch", "transformers", "peft", "accelerate")


def train(work: Work) -> Made | None:
    """Trains; goes on from the newest checkpoint if there is one. None: another process of the team publishes.

    Raises Interrupted after saving when a signal came.
    """
    clock = time.monotonic()
    settings = work.recipe.trainer
    check_trackers(settings.trackers)
    # Before the team: where processes are joined, transformers lets only the first one write a checkpoint, such as `tiny`.
    checkpoint = base.fetch_base(work.recipe, work.recipe_folder, work.scratch, work.environment, work.store)
    team = join_team()
    check_bits(settings.base_bits, team.device)
    if not team.leads:
        work = replace(work, progress=Progress(stream=_Silence()))
    with Stop() as stop, _arithmetic(settings.deterministic, work.environment.thread_count(), team.device):
        resume = _resume(work, team)
        precision = resume.state.precision if resume else choose_precision(settings.precision, team.device)
        run = _prepare(work, checkpoint, team, precision, stop)
        prepared = time.monotonic() - clock
        now = resume.state if resume else state.State(precision=precision)
        if resume:
            work.progress.line(f"going on after step {now.step} of phase {now.phase + 1}")
        try:
            while now.phase < len(settings.phases):
                now = run_phase(run, now, resume)
                resume = None
        finally:
            upload_events(work.recipe, work.scratch / "trackers", work.store)
    if not team.leads:
        return None
    images = {"train": len(run.train.labels), "validation": len(run.validation.labels)}
    write_training(work.folder, Training(precision=precision, images=images, phases=now.finished))
    write_curve(work.folder, now.curve)
    return Made(
        facts={"precision": precision, "pairs": len(run.train), "phases": [_fact(record) for record in now.finished]},
        measurements={
            "seconds": {"preparing": round(prepared, 3), "training": round(now.seconds, 3)},
            "device": str(team.device),
            "processes": team.size,
            "log": now.log,
            **memory_mb(),
        },
        versions={name: metadata.version(name) for name in PACKAGES},
    )


def _resume(work: Work, team: Team) -> state.Resume | None:
    """The newest checkpoint, the same one in every process. Raises StoreUnavailable when one was added meanwhile."""
    resume = state.load(work.partial, work.scratch / "resume")
    places = team.gather(None if resume is None else (resume.state.phase, resume.state.step))
    if len(set(places)) > 1:
        raise StoreUnavailable(f"{work.store.url}: the processes of this training found different checkpoints ({places}), since "
                               "another training of this run is saving; wait for it to end, then start again")  # fmt: skip
    return resume


def _prepare(work: Work, checkpoint: Path, team: Team, precision: Precision, stop: Stop) -> Run:
    recipe, settings = work.recipe, work.recipe.trainer
    geometry = read_geometry(checkpoint)
    encoder = PromptEncoder(load_tokenizer(checkpoint), geometry, recipe.task)
    dataset = work.fetch("labeller")
    check_answers(dataset, encoder, recipe.device.max_new_tokens)
    eye = geometry.family.eye(geometry, recipe.device, checkpoint)

    def read(split: str, **more: Any) -> Samples:
        return read_samples(
            dataset, split, encoder, eye, spool=Spool(work.scratch / f"{split}-tiles.bin"),
            threads=work.environment.thread_count(), check=stop.check, **more,
        )  # fmt: skip

    train, validation = read("train", augment=settings.augment, seed=settings.seed), read("validation")
    _check_classes(settings, train)
    looks = f" in {train.looks} looks each" if train.looks > 1 else ""
    pairs = f" with {len(train)} pairs of question and answer" if len(train) > len(train.labels) else ""
    team_of = f", {team.size} processes" if team.size > 1 else ""
    work.progress.line(f"{len(train.labels)} images train{looks}{pairs}, {len(validation)} validate, "
                       f"{max(train.lengths)} tokens at most, {precision} on {team.device}{team_of}")  # fmt: skip
    return Run(work, checkpoint, geometry, encoder, train, validation, plan_phases(settings, len(train)), team, precision, stop)


def _check_classes(settings: Settings, train: Samples) -> None:
    if settings.sampling == "balanced" and len(set(train.labels)) == len(train.labels):
        raise DataError("run.trainer.sampling: balanced needs classes, and no two images of this dataset have the same answer; "
                        "use natural")  # fmt: skip


def _fact(record: PhaseRecord) -> dict[str, Any]:
    return {"method": record.method, "parts": record.parts, "steps": record.steps, "tensors": len(record.changed),
            "best_step": record.best.step, "validation_accuracy": record.best.accuracy}  # fmt: skip


class _Silence(io.StringIO):
    """Where the processes of a team write that do not lead it."""

    def write(self, text: str) -> int:
        return len(text)


@contextmanager
def _arithmetic(deterministic: bool, threads: int, device: torch.device) -> Iterator[None]:
    """Threads and deterministic kernels as asked; as before at the end."""
    before = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    memory: Any = torch.utils.deterministic
    filled = memory.fill_uninitialized_memory
    torch.set_num_threads(threads)
    if deterministic:
        # On CUDA some kernels of attention have no deterministic form: they may run, and torch says so.
        torch.use_deterministic_algorithms(True, warn_only=device.type != "cpu")
        # Guards against reading memory that nobody wrote, at the price of writing all of it.
        memory.fill_uninitialized_memory = False
        # cuBLAS reads it from the process when its first handle is made (CUDA's notes on reproducibility).
        os.putenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    try:
        yield
    finally:
        torch.set_num_threads(before[0])
        torch.use_deterministic_algorithms(before[1])
        memory.fill_uninitialized_memory = filled
