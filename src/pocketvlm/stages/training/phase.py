"""One phase of a training: the student that learns, what it sees, its steps, and what is kept of it."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pocketvlm.artifacts.checkpoint_layout import PhaseRecord
from pocketvlm.errors import Interrupted
from pocketvlm.run_file import Phase
from pocketvlm.stages.stage import Work
from pocketvlm.stages.training import features, state
from pocketvlm.stages.training.batches import Order
from pocketvlm.stages.training.features import Features
from pocketvlm.stages.training.learner import Learner, Precision
from pocketvlm.stages.training.loop import Loop, Rules, parameter_groups
from pocketvlm.stages.training.plan import Plan
from pocketvlm.stages.training.samples import Samples
from pocketvlm.stages.training.schedule import factor
from pocketvlm.stages.training.spool import Spool
from pocketvlm.stages.training.stop import Stop
from pocketvlm.stages.training.team import Team
from pocketvlm.stages.training.trackers import Tracker, open_trackers
from pocketvlm.stages.training.validate import Validator, judge_of
from pocketvlm.stages.training.watch import Places, Watch
from pocketvlm.student import adapters
from pocketvlm.student.checkpoint import load_model
from pocketvlm.student.families import Geometry
from pocketvlm.student.memory import Pass, choose_passes
from pocketvlm.student.prompt import PromptEncoder
from pocketvlm.student.tasks import kind_of


@dataclass
class Run:
    """What all phases share."""

    work: Work
    base: Path
    geometry: Geometry
    encoder: PromptEncoder
    train: Samples
    validation: Samples
    plans: list[Plan]
    team: Team
    precision: Precision
    stop: Stop
    cached: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)
    """Features of both splits, by the number of phases that had trained what they depend on before."""

    def seed(self, phase: int) -> int:
        """Another one for each phase; NumPy takes none below zero."""
        return (self.work.recipe.trainer.seed + phase) % 2**31

    def phase(self, index: int) -> Phase:
        """Its settings."""
        return self.work.recipe.trainer.phases[index]


@dataclass(frozen=True)
class Pupil:
    """The student of a phase, and what of it learns."""

    model: Any
    targets: list[str]
    """Linear layers with adapters."""
    full: list[str]
    """Tensors that learn whole beside the adapters."""
    shapes: dict[str, tuple[int, ...]]
    """Of the base's tensors, by name."""


def run_phase(run: Run, now: state.State, resume: state.Resume | None) -> state.State:
    """Runs what is left of the phase that `now` names; returns the state in which the next one starts."""
    work, plan, phase = run.work, run.plans[now.phase], run.phase(now.phase)
    best = work.scratch / f"best-{plan.index}.safetensors"
    if resume:
        state.restore(resume, best, work.folder)
    pupil = _open_pupil(run, plan.index, now.finished)
    early = work.recipe.trainer.early_stop
    if (now.step < plan.steps and not now.stopped_early(early)) or now.owes_validation(plan):
        _learn(run, pupil, now, resume, best)
    if any(run.team.any(run.stop.asked)):
        raise Interrupted(f"saved at step {plan.steps_before + now.step} of {plan.steps_of_all}; "
                          "run the same command again to go on")  # fmt: skip
    assert now.best is not None, "the last step of a phase validates"
    lora = phase.method == "lora"
    record = PhaseRecord(
        index=plan.index, method=phase.method, parts=phase.train, targets=pupil.targets, full=pupil.full,
        rank=phase.rank if lora else None, alpha=phase.alpha if lora else None, steps=now.step, best=now.best,
        changed=sorted([*(f"{path}.weight" for path in pupil.targets), *pupil.full] if lora
                       else adapters.trained_tensors(pupil.model)),
    )  # fmt: skip
    adapters.write_phase(work.folder, record, best)
    early_text = f" ({plan.steps} were planned, and validations no longer got better)" if now.step < plan.steps else ""
    work.progress.line(f"phase {plan.index + 1} of {len(run.plans)}: best after step {now.best.step} of {now.step}{early_text}, "
                       f"validation accuracy {now.best.accuracy:.4f}, loss {now.best.loss:.4f}")  # fmt: skip
    return now.model_copy(update={"phase": now.phase + 1, "step": 0, "pending": [], "best": None, "micro_batch_size": None,
                                  "finished": [*now.finished, record]})  # fmt: skip


def _open_pupil(run: Run, index: int, finished: list[PhaseRecord]) -> Pupil:
    """The base with all finished phases, read from their files as a resume reads them, and made ready to learn."""
    phase, where = run.phase(index), f"run.trainer.phases[{index}]"
    bits = run.work.recipe.trainer.base_bits
    model: Any = load_model(run.base, dtype=torch.float32, bits=bits)
    for record in finished:
        adapters.apply_phase(model, run.work.folder, record, merge=True)
    family = run.geometry.family
    shapes = {name: shape_of(parameter) for name, parameter in model.named_parameters()}
    if phase.method == "full":
        adapters.train_parts(model, family, phase.train)
        return Pupil(model, [], [], shapes)
    full = adapters.resolve_full(model, family, phase, where=where)
    targets = adapters.resolve_targets(model, family, phase, where=where)
    adapters.inject(model, targets, rank=phase.rank, alpha=phase.alpha, dropout=phase.dropout, seed=run.seed(index))
    adapters.train_whole(model, full)
    return Pupil(model, targets, full, shapes)


def shape_of(parameter: Any) -> tuple[int, ...]:
    """Of what it holds: 4 bits lie packed in one column of bytes, and bitsandbytes keeps the true shape beside them."""
    return tuple(getattr(parameter, "quant_state", parameter).shape)


def _learn(run: Run, pupil: Pupil, now: state.State, resume: state.Resume | None, best: Path) -> None:
    """Takes `now` to the end of its phase, or to where a signal stops it."""
    plan, recipe, student = run.plans[now.phase], run.work.recipe, pupil.model
    learner = Learner(student, run.geometry.family, run.precision).to(run.team.device)
    train, validation = _features(run, student, now)
    with open_trackers(recipe, run.work.scratch / "trackers", plan.index) as trackers:
        loop = _loop(run, pupil, learner, train, validation, now)
        watch = _watch(run, loop, validation, now, best, trackers if run.team.leads else [])
        if resume:
            adapters.load_trained(student, resume.folder / state.TRAINED)
            # The machine that saved it may have had another device; what is loaded goes where its weights are.
            saved = torch.load(resume.folder / state.OPTIMISER, map_location="cpu", weights_only=True)
            loop.optimiser.load_state_dict(saved)
            if now.owes_validation(plan):
                watch.catch_up()
        go_on = not watch.ended and not any(run.team.any(run.stop.asked))
        while go_on:
            loop.step(now.step + 1)
            go_on = watch.after_step()


def _features(run: Run, student: Any, now: state.State) -> tuple[Features, Features]:
    """Both splits, with cached features if the phase leaves alone all that they depend on."""
    family, device = run.geometry.family, run.team.device
    if set(run.phase(now.phase).train) & set(family.features_of):
        return Features(run.train, family, device, None), Features(run.validation, family, device, None)
    version = sum(not set(record.parts).isdisjoint(family.features_of) for record in now.finished)
    if version not in run.cached:
        run.cached.clear()
        clock = time.monotonic()

        def report(done: int, total: int) -> None:
            run.stop.check()
            run.work.progress.step(done, total, "tiles through the vision tower")

        def computed(samples: Samples, split: str) -> Tensor:
            spool = Spool(run.work.scratch / f"{split}-{version}.bin")
            return features.compute(family, student, samples.tiles, device, spool, report)

        run.cached[version] = computed(run.train, "train"), computed(run.validation, "validation")
        run.work.progress.line(f"vision features of all images kept, {time.monotonic() - clock:.1f} s")
    train, validation = run.cached[version]
    return Features(run.train, family, device, train), Features(run.validation, family, device, validation)


def _loop(
    run: Run, pupil: Pupil, learner: Learner, train: Features, validation: Features, now: state.State
) -> Loop:
    plan, settings, phase, samples = run.plans[now.phase], run.work.recipe.trainer, run.phase(now.phase), run.train
    seed = run.seed(plan.index)
    order = Order(
        samples.lengths, batch_size=plan.batch_size, seed=(seed, plan.index), images=samples.images, looks=samples.looks,
        classes=[samples.labels[image] for image in samples.images] if settings.sampling == "balanced" else None,
    )  # fmt: skip
    passes = choose_passes(
        run.geometry.family, pupil.shapes, settings, phase, _longest(run, train), tied_head=run.geometry.tied_head,
        precision=run.precision, held_bytes=train.held_bytes + validation.held_bytes, budget_bytes=_budget(run.team.device),
        processes=run.team.size, own_memory=run.team.device.type != "cpu",
    )  # fmt: skip
    if not passes.images_on_host:
        train.hold()
        validation.hold()
    if passes.checkpointing:
        learner.forget_activations()
    run.work.progress.line(passes.words)

    def halved(size: int) -> None:
        now.micro_batch_size = size
        run.work.progress.warn(f"out of memory: passes of {size} samples from now on; a step stays {plan.batch_size} samples")

    rules = Rules(
        seed=(seed, plan.index), max_grad_norm=settings.max_grad_norm, halved=halved,
        factor=lambda step: factor(phase, step, steps=plan.steps, steps_per_epoch=plan.steps_per_epoch),
    )  # fmt: skip
    groups = parameter_groups(learner.student, run.geometry.family, phase)
    return Loop(learner, groups, train, order, run.team, rules, micro_batch_size=now.micro_batch_size or passes.size)


def _longest(run: Run, train: Features) -> Pass:
    """The largest number of each kind, whether or not they come together."""
    samples, geometry = run.train, run.geometry
    tiles = max(len(set(places)) for places in samples.places)
    images = [ids.count(run.encoder.image_id) // len(places) for ids, places in
              ((samples.prompt(n), samples.places[samples.look_of(n)]) for n in range(len(samples)))]  # fmt: skip
    visual = tiles * max(images)
    answers = [length - prompt for length, prompt in zip(samples.lengths, samples.prompt_lengths, strict=True)]
    return Pass(max(samples.lengths), max(answers), visual, 0 if train.cached else visual * geometry.patches_per_token)


def _budget(device: torch.device) -> float | None:
    """90 % of a GPU: the rest is CUDA's own, and what fragments."""
    return 0.9 * torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else None


def _watch(
    run: Run, loop: Loop, validation: Features, now: state.State, best: Path, trackers: list[Tracker]
) -> Watch:
    work, recipe = run.work, run.work.recipe
    judge = judge_of(validation, run.encoder, kind_of(recipe.task), recipe.device.max_new_tokens)
    if len(judge.images) < len(validation.samples):
        work.progress.line(f"accuracy is measured on {len(judge.images)} of the {len(validation.samples)} images of validation, "
                           "whose answers are written out; the loss on all")  # fmt: skip

    def halved(images: int) -> None:
        work.progress.warn(f"out of memory: validation looks at {images} images at once from now on")

    return Watch(
        run.plans[now.phase], now, loop=loop, validator=Validator(validation, judge, run.team, halved), team=run.team,
        partial=work.partial, progress=work.progress, stop=run.stop,
        places=Places(best, work.folder, work.scratch / "checkpoint"), early_stop=recipe.trainer.early_stop, trackers=trackers,
    )  # fmt: skip
