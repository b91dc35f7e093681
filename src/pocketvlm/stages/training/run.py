"""All phases of one training, from the base and the dataset to the files of the checkpoints artifact."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pocketvlm.artifacts.checkpoint_layout import PhaseRecord, Training, write_curve, write_training
from pocketvlm.errors import Interrupted, NotAvailableYet
from pocketvlm.run_file import Phase
from pocketvlm.stages.stage import Made, Work
from pocketvlm.stages.training import features, loop, state
from pocketvlm.stages.training.batches import LengthGroupedBatches, Loader
from pocketvlm.stages.training.features import Features
from pocketvlm.stages.training.learner import Learner, Precision, choose_device, choose_precision
from pocketvlm.stages.training.plan import Plan, plan_phases
from pocketvlm.stages.training.samples import Samples, read_samples
from pocketvlm.stages.training.spool import Spool
from pocketvlm.stages.training.stop import Stop
from pocketvlm.stages.training.trackers import check_trackers, open_trackers, upload_events
from pocketvlm.stages.training.validate import Validator
from pocketvlm.stages.training.watch import Watch, memory_mb
from pocketvlm.student import adapters, base
from pocketvlm.student.checkpoint import load_model, load_tokenizer
from pocketvlm.student.families import Geometry, read_geometry
from pocketvlm.student.grammar import AllowedAnswers
from pocketvlm.student.prompt import PromptEncoder, prompt_text
from pocketvlm.student.scoring import Layout

PACKAGES = ("torch", "transformers", "peft", "accelerate")


@dataclass
class Run:
    """What all phases share."""

    work: Work
    base: Path
    geometry: Geometry
    encoder: PromptEncoder
    allowed: AllowedAnswers
    train: Samples
    validation: Samples
    plans: list[Plan]
    device: torch.device
    precision: Precision
    stop: Stop
    cached: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)
    """Features of both splits, by the number of phases that had trained the vision part before."""


def train(work: Work) -> Made:
    """Trains; goes on from the newest checkpoint if there is one. Raises Interrupted after saving when a signal came."""
    clock = time.monotonic()
    settings = work.recipe.trainer
    check_trackers(settings.trackers)
    device = choose_device()
    with Stop() as stop, _arithmetic(settings.deterministic, work.environment.thread_count(), device):
        resume = state.load(work.partial, work.scratch / "resume")
        precision = resume.state.precision if resume else choose_precision(settings.precision, device)
        run = _prepare(work, device, precision, stop)
        prepared = time.monotonic() - clock
        now = resume.state if resume else state.State(precision=precision)
        if resume:
            work.progress.line(f"going on after step {now.step} of phase {now.phase + 1}")
        try:
            while now.phase < len(settings.phases):
                now = _phase(run, now, resume)
                resume = None
        finally:
            upload_events(work.recipe, work.scratch / "trackers", work.store)
    images = {"train": len(run.train.labels), "validation": len(run.validation.labels)}
    write_training(work.folder, Training(precision=precision, images=images, phases=now.finished))
    write_curve(work.folder, now.curve)
    return Made(
        facts={"precision": precision, "pairs": len(run.train), "phases": [_fact(record) for record in now.finished]},
        measurements={
            "seconds": {"preparing": round(prepared, 3), "training": round(now.seconds, 3)},
            "device": str(device),
            "log": now.log,
            **memory_mb(),
        },
        versions={name: metadata.version(name) for name in PACKAGES},
    )


def _prepare(work: Work, device: torch.device, precision: Precision, stop: Stop) -> Run:
    recipe = work.recipe
    checkpoint = base.fetch_base(recipe, work.recipe_folder, work.scratch, work.environment)
    geometry = read_geometry(checkpoint)
    tokenizer = load_tokenizer(checkpoint)
    encoder = PromptEncoder(tokenizer, prompt=prompt_text(recipe.task), tokens_per_tile=geometry.tokens_per_tile)
    dataset = work.fetch("labeller")
    layout = Layout(geometry.tile_px, recipe.device.longest_edge_px)

    def read(split: str) -> Samples:
        return read_samples(
            dataset, split, encoder, layout, spool=Spool(work.scratch / f"{split}-tiles.bin"),
            threads=work.environment.thread_count(), check=stop.check,
        )  # fmt: skip

    train, validation = read("train"), read("validation")
    pairs = f" with {len(train)} pairs of question and answer" if len(train) > len(train.labels) else ""
    work.progress.line(f"{len(train.labels)} images train{pairs}, {len(validation)} validate, "
                       f"{max(train.lengths)} tokens at most, {precision} on {device}")  # fmt: skip
    allowed = AllowedAnswers(list(recipe.task.classes), tokenizer.get_vocab(), tokenizer.all_special_ids)
    plans = plan_phases(recipe.trainer, len(train))
    return Run(work, checkpoint, geometry, encoder, allowed, train, validation, plans, device, precision, stop)


def _phase(run: Run, now: state.State, resume: state.Resume | None) -> state.State:
    """Runs what is left of the phase that `now` names; returns the state in which the next one starts."""
    work, plan, phase = run.work, run.plans[now.phase], run.work.recipe.trainer.phases[now.phase]
    best = work.scratch / f"best-{plan.index}.safetensors"
    if resume:
        state.restore(resume, best, work.folder)
    student, targets = _open_student(run, plan.index, now.finished)
    if now.step < plan.steps or now.owes_validation(plan):
        _learn(run, student, now, resume, best)
    if run.stop.asked:
        raise Interrupted(f"saved at step {plan.steps_before + now.step} of {plan.steps_of_all}; "
                          "run the same command again to go on")  # fmt: skip
    assert now.step == plan.steps and now.best is not None, "the last step of a phase validates"
    record = PhaseRecord(
        index=plan.index, method=phase.method, parts=phase.train, targets=targets, rank=phase.rank if targets else None,
        alpha=phase.alpha if targets else None, steps=plan.steps, best=now.best,
        changed=sorted([f"{path}.weight" for path in targets] or adapters.trained_tensors(student)),
    )  # fmt: skip
    adapters.write_phase(work.folder, record, best)
    work.progress.line(f"phase {plan.index + 1} of {len(run.plans)}: best after step {now.best.step} of {plan.steps}, "
                       f"validation accuracy {now.best.accuracy:.4f}, loss {now.best.loss:.4f}")  # fmt: skip
    return now.model_copy(update={"phase": now.phase + 1, "step": 0, "pending": [], "best": None,
                                  "finished": [*now.finished, record]})  # fmt: skip


def _learn(run: Run, student: Any, now: state.State, resume: state.Resume | None, best: Path) -> None:
    """Takes `now` to the end of its phase, or to where a signal stops it."""
    plan, recipe = run.plans[now.phase], run.work.recipe
    learner = Learner(student, run.encoder.image_id, run.precision).to(run.device)
    train, validation = _features(run, student, recipe.trainer.phases[now.phase], now)
    with open_trackers(recipe, run.work.scratch / "trackers", plan.index) as callbacks:
        trainer, watch = _trainer(run, learner, train, validation, now, best, callbacks)
        if resume and now.owes_validation(plan):
            adapters.load_trained(student, resume.folder / state.TRAINED)
            watch.catch_up()
        # A checkpoint after the last step leaves no step to do; the HF Trainer would go on to the end of the epoch.
        if now.step < plan.steps and not run.stop.asked:
            trainer.train(resume_from_checkpoint=str(resume.folder) if resume else None)


def _open_student(run: Run, index: int, finished: list[PhaseRecord]) -> tuple[Any, list[str]]:
    """The base with all finished phases, read from their files as a resume reads them; and the LoRA targets, if any."""
    phase = run.work.recipe.trainer.phases[index]
    student = load_model(run.base, dtype=torch.float32)
    for record in finished:
        adapters.apply_phase(student, run.work.folder, record, merge=True)
    family = run.geometry.family
    if phase.method == "full":
        adapters.train_parts(student, family, phase.train)
        return student, []
    targets = adapters.resolve_targets(student, family, phase, where=f"run.trainer.phases[{index}]")
    adapters.inject(student, targets, rank=phase.rank, alpha=phase.alpha, dropout=phase.dropout, seed=_seed(run, index))
    return student, targets


def _features(run: Run, student: Any, phase: Phase, now: state.State) -> tuple[Features, Features]:
    """Both splits, with cached features if the phase leaves the vision part alone."""
    if "vision" in phase.train:
        return Features(run.train, run.device, None), Features(run.validation, run.device, None)
    version = sum("vision" in record.parts for record in now.finished)
    if version not in run.cached:
        run.cached.clear()
        clock = time.monotonic()

        def report(done: int, total: int) -> None:
            run.stop.check()
            run.work.progress.step(done, total, "tiles through the vision tower")

        run.cached[version] = (
            features.compute(student, run.train.tiles_NHWC, run.device,
                             Spool(run.work.scratch / f"train-{version}.bin"), report),
            features.compute(student, run.validation.tiles_NHWC, run.device,
                             Spool(run.work.scratch / f"validation-{version}.bin"), report),
        )  # fmt: skip
        run.work.progress.line(f"vision features of all images kept, {time.monotonic() - clock:.1f} s")
    train, validation = run.cached[version]
    return Features(run.train, run.device, train), Features(run.validation, run.device, validation)


def _trainer(
    run: Run, learner: Learner, train: Features, validation: Features, now: state.State, best: Path, trackers: list[Any]
) -> tuple[loop.PhaseTrainer, Watch]:
    work, plan, settings = run.work, run.plans[now.phase], run.work.recipe.trainer
    phase = settings.phases[plan.index]
    seed = _seed(run, plan.index)
    batches = LengthGroupedBatches(
        run.train.lengths, batch_size=plan.batch_size, micro_batch_size=plan.micro_batch_size, seed=(seed, plan.index)
    )
    watch = Watch(
        plan, now, validator=Validator(validation, run.encoder, run.allowed, list(work.recipe.task.classes)),
        partial=work.partial, progress=work.progress, stop=run.stop, best=best, output=work.folder,
    )  # fmt: skip
    arguments = loop.arguments(settings, phase, seed=seed, folder=work.scratch / "hf", cpu=run.device.type == "cpu")
    if arguments.world_size > 1:
        raise NotAvailableYet(f"{arguments.world_size} processes were launched; training on more than one GPU is not "
                              "available yet, start one")  # fmt: skip
    trainer = loop.PhaseTrainer(
        learner, arguments, Loader(run.train, train, batches),
        loop.parameter_groups(learner.student, run.geometry.family, phase),
        [watch, *trackers],
    )  # fmt: skip
    watch.trainer = trainer
    return trainer, watch


def _seed(run: Run, phase: int) -> int:
    """Another one for each phase; NumPy takes none below zero."""
    return (run.work.recipe.trainer.seed + phase) % 2**31


def _fact(record: PhaseRecord) -> dict[str, Any]:
    return {"method": record.method, "parts": record.parts, "steps": record.steps, "tensors": len(record.changed),
            "best_step": record.best.step, "validation_accuracy": record.best.accuracy}  # fmt: skip


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
