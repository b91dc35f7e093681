"""A training that is killed anywhere and started again ends with the bytes of one that nobody disturbed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from torch import nn
from torch.nn.modules.module import register_module_forward_hook

from pocketvlm.artifacts.partial import Partial
from pocketvlm.errors import Interrupted
from pocketvlm.progress import Progress
from pocketvlm.stages.training.state import State

# Two phases, micro-batches, LoRA dropout and a vision part that learns: whatever could lose its place. 40 images:
# 5 steps an epoch, the last one smaller (passes 3 3 3 3 2); 8 steps in the first phase, 10 in the second.
TRAINER: dict[str, Any] = {
    "phases": [
        {"method": "full", "train": ["connector", "text"], "epochs": 1.5, "learning_rate": 1e-3, "warmup_steps": 2},
        {"method": "lora", "train": ["vision", "text"], "epochs": 2, "learning_rate": 1e-3, "rank": 4, "dropout": 0.3,
         "schedule": "cosine", "weight_decay": 0.1},
    ],
    "batch_size": 9,
    "micro_batch_size": 3,
    "checkpoint_every_steps": 2,
}  # fmt: skip


class Killed(BaseException):
    """What no code of ours catches."""


class AtStep(Progress):
    """Does something when the training reports an optimiser step, counted over all phases."""

    def __init__(self, step: int, deed: Callable[[], None]) -> None:
        super().__init__()
        self._step, self._deed = step, deed

    def step(self, done: int, total: int, unit: str, **numbers: Any) -> None:
        super().step(done, total, unit, **numbers)
        if unit == "steps" and done == self._step:
            self._deed()


def die() -> None:
    raise Killed


def terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


@contextmanager
def in_forward_pass(number: int, deed: Callable[[], None]) -> Iterator[None]:
    """Does something inside a training pass over a micro-batch, counted from 1."""
    passes = 0

    def count(module: nn.Module, *_: object) -> None:
        nonlocal passes
        if type(module).__name__ == "Learner" and module.training:
            passes += 1
            if passes == number:
                deed()

    handle = register_module_forward_hook(count)
    try:
        yield
    finally:
        handle.remove()


@pytest.fixture(scope="module")
def undisturbed(new_bench: Callable[[str], Any]) -> Any:
    return new_bench("undisturbed").train(**TRAINER)


def test_the_training_has_two_phases_and_published_them(undisturbed: Any) -> None:
    assert [(phase.steps, phase.best.step > 0) for phase in undisturbed.training.phases] == [(8, True), (10, True)]
    names = set(undisturbed.bytes[1])
    assert names == {"training.json", "curve.jsonl", "phases/0/weights.safetensors", "phases/1/adapter_model.safetensors",
                     "phases/1/adapter_config.json"}  # fmt: skip


@pytest.mark.parametrize(
    "steps",
    [
        pytest.param((1, 5, 9, 17), id="before any checkpoint, at an epoch's end, first step of phase 2, late"),
        pytest.param((3, 6, 13), id="mid-epoch, one step after a validation, before phase 2's first validation"),
    ],
)
def test_training_killed_after_a_step_ends_with_the_same_bytes(
    bench: Any, undisturbed: Any, steps: tuple[int, ...]
) -> None:
    for step in steps:
        with pytest.raises(Killed):
            bench.train(progress=AtStep(step, die), **TRAINER)
    assert bench.train(**TRAINER).bytes == undisturbed.bytes


def test_training_killed_between_micro_batches_ends_with_the_same_bytes(bench: Any, undisturbed: Any) -> None:
    # Pass 11 is in step 4; from the checkpoint after step 2, pass 11 is in step 6; from the one at 5, pass 26 is in 14.
    for number in (11, 11, 26):
        with in_forward_pass(number, die), pytest.raises(Killed):
            bench.train(**TRAINER)
    assert bench.train(**TRAINER).bytes == undisturbed.bytes


def test_sigterm_saves_at_the_next_step_and_says_so(bench: Any, undisturbed: Any) -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Interrupted, match="saved at step 12 of 18; run the same command again"):
        bench.train(progress=AtStep(12, terminate), **TRAINER)
    assert signal.getsignal(signal.SIGTERM) is before
    partial = Partial(bench.store("store"), "checkpoints", undisturbed.artifact.id)
    assert partial.latest(bench.folder / "latest") == 12
    assert bench.train(**TRAINER).bytes == undisturbed.bytes
    assert partial.latest(bench.folder / "latest") is None, "deleted once the artifact is published"


@pytest.mark.parametrize(
    ("number", "step"),
    [pytest.param(14, 5, id="in the middle of a phase"), pytest.param(23, 8, id="after the last step of a phase")],
)
def test_sigterm_leaves_a_validation_to_the_next_attempt(bench: Any, undisturbed: Any, number: int, step: int) -> None:
    with in_forward_pass(number, terminate), pytest.raises(Interrupted, match=f"saved at step {step} of 18"):
        bench.train(**TRAINER)
    partial = Partial(bench.store("store"), "checkpoints", undisturbed.artifact.id)
    assert partial.latest(bench.folder / "latest") == step
    saved = State.model_validate_json((bench.folder / "latest" / "state.json").read_bytes())
    assert saved.step == step and saved.curve[-1].step == step - 1 and len(saved.pending) == 1
    assert bench.train(**TRAINER).bytes == undisturbed.bytes


# 400 steps are the fewest that are not logged each: losses wait in `pending`, and a checkpoint falls between two points.
LONG: dict[str, Any] = {
    "phases": [{"train": ["text"], "targets": {"text": ["q_proj"]}, "epochs": 10, "learning_rate": 1e-3, "rank": 1}],
    "batch_size": 1, "validate_every": 5, "checkpoint_every_steps": 101,
}  # fmt: skip


def test_losses_between_two_points_of_the_curve_outlive_a_kill(bench: Any) -> None:
    whole = bench.train("whole", **LONG)
    assert [point.step for point in whole.curve[:3]] == [2, 4, 6]
    with pytest.raises(Killed):
        bench.train(progress=AtStep(104, die), **LONG)
    partial = Partial(bench.store("store"), "checkpoints", whole.artifact.id)
    assert partial.latest(bench.folder / "latest") == 101
    assert len(State.model_validate_json((bench.folder / "latest" / "state.json").read_bytes()).pending) == 1
    assert bench.train(**LONG).bytes == whole.bytes


# 40 images, each with the shipped question and two of three more: 120 samples, 7 steps of 18, the last one smaller.
ASKED: dict[str, Any] = {
    "task": {
        "questions": [{"ask": "{classes}?"}, {"ask": "What is it?", "answer": "{description}, so: {label}"}, {"ask": "Well?"}],
        "questions_per_image": 2,
    },
    "phases": [{"train": ["connector", "text"], "epochs": 1, "learning_rate": 1e-3, "rank": 2, "dropout": 0.3}],
    "batch_size": 18, "micro_batch_size": 6, "checkpoint_every_steps": 2,
}  # fmt: skip


def test_training_with_variants_of_the_question_is_resumed_to_the_same_bytes(bench: Any) -> None:
    whole = bench.train("whole", **ASKED)
    assert whole.training.images["train"] == 40 and whole.artifact.facts["pairs"] == 120
    assert [phase.steps for phase in whole.training.phases] == [7]
    with pytest.raises(Killed):
        bench.train(progress=AtStep(5, die), **ASKED)
    assert bench.train(**ASKED).bytes == whole.bytes


def test_what_was_begun_on_a_gpu_is_gone_on_with_where_there_is_none(bench: Any, undisturbed: Any) -> None:
    with pytest.raises(Killed):
        bench.train(progress=AtStep(13, die), **TRAINER)
    partial = Partial(bench.store("store"), "checkpoints", undisturbed.artifact.id)
    saved = bench.folder / "latest"
    step = partial.latest(saved)
    assert step is not None
    as_of_a_gpu(saved / "optimiser.pt")
    partial.clear()
    Partial(bench.store("store"), "checkpoints", undisturbed.artifact.id).save(step, saved)
    assert bench.train(**TRAINER).bytes == undisturbed.bytes


def as_of_a_gpu(path: Path) -> None:
    """What torch.save writes of tensors on the first GPU: the same, but for the place that each storage names."""
    with zipfile.ZipFile(path) as whole:
        members = {name: whole.read(name) for name in whole.namelist()}
    with zipfile.ZipFile(path, "w") as whole:
        for name, content in members.items():
            if name.endswith("/data.pkl"):
                assert b"X\x03\x00\x00\x00cpu" in content, "a pickled text with its length"
                content = content.replace(b"X\x03\x00\x00\x00cpu", b"X\x06\x00\x00\x00cuda:0")
            whole.writestr(name, content)


def test_checkpoints_are_no_part_of_what_is_made(bench: Any, undisturbed: Any) -> None:
    assert bench.train(**{**TRAINER, "checkpoint_every_steps": None}).bytes == undisturbed.bytes


def test_sigkill_of_the_process_ends_with_the_same_bytes(bench: Any, undisturbed: Any) -> None:
    path = bench.run_file(**TRAINER)
    store = bench.store("store")
    bench.label(path, store)
    environment = {**os.environ, "POCKETVLM_THREADS": "1", "POCKETVLM_SCRATCH": str(bench.folder / "scratch")}
    child = subprocess.Popen(
        [sys.executable, "-m", "pocketvlm", "--store", store.url, "stage", "trainer", str(path)],
        env=environment, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        wait_for_step(Path(store.url) / "partial", 12, child)
    finally:
        child.kill()
        child.wait()
    assert bench.train(**TRAINER).bytes == undisturbed.bytes


def wait_for_step(partial: Path, wanted: int, child: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if any(int(path.parent.name) >= wanted for path in partial.glob("*/*/*/*/step.json")):
            return
        assert child.poll() is None, "it ended before it could be killed"
        time.sleep(0.02)
    raise AssertionError("no checkpoint came")
