"""What a training learns, and that it is what the run file asked for."""

from __future__ import annotations

import importlib.util
import io
import json
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from torch.nn.modules.module import register_module_forward_pre_hook

from pocketvlm.artifacts.checkpoint_layout import Validation
from pocketvlm.errors import UserError
from pocketvlm.progress import Progress
from pocketvlm.stages import trainer as stage
from pocketvlm.stages.stage import run_stage
from pocketvlm.stages.training.trackers import open_trackers
from pocketvlm.student.adapters import apply_phase
from pocketvlm.student.checkpoint import load_model
from pocketvlm.student.families import FAMILIES
from pocketvlm.student.tiny import build_tiny

FAMILY = FAMILIES["SmolVLMForConditionalGeneration"]
FULL = {"method": "full", "epochs": 0.6, "learning_rate": 1e-3}
LORA = {"method": "lora", "epochs": 0.6, "learning_rate": 1e-3, "rank": 4}
Weights = dict[str, torch.Tensor]


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny(tmp_path_factory.mktemp("base") / "tiny", seed=0, longest_edge_px=32)


def weights_after(base: Path, trained: Any) -> Weights:
    model = load_model(base)
    for phase in trained.training.phases:
        apply_phase(model, trained.folder, phase, merge=True)
    return dict(model.state_dict())


def changed(base: Path, trained: Any) -> set[str]:
    before, after = load_model(base).state_dict(), weights_after(base, trained)
    return {name for name in before if not torch.equal(before[name], after[name])}


def names(base: Path, *parts: str, linear: bool = False) -> set[str]:
    model = load_model(base)
    layers = {f"{path}.weight" for path, module in model.named_modules() if type(module).__name__ == "Linear"}
    return {
        name
        for name in model.state_dict()
        if FAMILY.part_of(name) in parts and (not linear or name in layers - {"lm_head.weight"})
    }


@pytest.mark.parametrize(
    ("phases", "expected"),
    [
        ([{**FULL, "train": ["text"]}], lambda base: names(base, "text")),
        ([{**LORA, "train": ["text"]}], lambda base: names(base, "text", linear=True)),
        ([{**FULL, "train": ["connector", "text"]}], lambda base: names(base, "connector", "text")),
        ([{**LORA, "train": ["vision"], "targets": {"vision": ["fc1"]}}],
         lambda base: {name for name in names(base, "vision") if name.endswith("fc1.weight")}),
        ([{**FULL, "train": ["connector"]}, {**LORA, "train": ["vision", "connector", "text"], "targets": {"text": ["q_proj"]}}],
         lambda base: names(base, "vision", "connector", linear=True)
         | {name for name in names(base, "text") if name.endswith("q_proj.weight")}),
    ],
    ids=["full text", "lora text", "full connector and text", "lora on named layers of vision", "full, then lora"],
)  # fmt: skip
def test_exactly_the_named_parts_change(
    bench: Any, base: Path, phases: list[Any], expected: Callable[[Path], set[str]]
) -> None:
    trained = bench.train(phases=phases)
    assert changed(base, trained) == trained.training.changed == expected(base)


def test_merged_adapter_gives_the_logits_of_the_adapter_that_is_on(bench: Any, base: Path) -> None:
    trained = bench.train(phases=[{**LORA, "train": ["text"], "learning_rate": 0.01}])
    (phase,) = trained.training.phases
    on, merged = load_model(base), load_model(base)
    apply_phase(on, trained.folder, phase, merge=False)
    apply_phase(merged, trained.folder, phase, merge=True)
    ids = torch.arange(5, 25)[None]
    with torch.no_grad():
        a, b, c = (m(input_ids=ids).logits for m in (on, merged, load_model(base)))
    torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)
    assert (a - c).abs().max() > 1e-2


def test_peft_opens_the_adapter(bench: Any, base: Path) -> None:
    from peft import PeftModel

    trained = bench.train(phases=[{**LORA, "train": ["connector", "text"]}])
    (phase,) = trained.training.phases
    ours = load_model(base)
    apply_phase(ours, trained.folder, phase, merge=True)
    theirs = PeftModel.from_pretrained(load_model(base), trained.folder / phase.folder).merge_and_unload()
    for name, tensor in ours.state_dict().items():
        torch.testing.assert_close(theirs.state_dict()[name], tensor, msg=name)


def test_accumulated_micro_batches_are_the_big_batch(bench: Any) -> None:
    phases = [{**FULL, "train": ["text"], "epochs": 1}]
    big = bench.train(phases=phases, batch_size=12)
    small = bench.train(phases=phases, batch_size=12, micro_batch_size=3)
    assert big.artifact.id != small.artifact.id
    assert [point.step for point in big.curve] == [1, 2, 3, 4], "40 samples: the last step has four"
    for a, b in zip(big.curve, small.curve, strict=True):
        assert a.loss == pytest.approx(b.loss, abs=1e-5)


def test_cached_features_teach_the_same_as_computed_ones(bench: Any) -> None:
    phase = {**FULL, "epochs": 1}
    cached = bench.train(phases=[{**phase, "train": ["connector", "text"]}], max_grad_norm=1e9)
    # With a rate of zero the vision part stays as it is, and is run on the tiles of every batch.
    computed = bench.train(
        phases=[{**phase, "train": ["vision", "connector", "text"], "part_learning_rates": {"vision": 0.0}}],
        max_grad_norm=1e9,
    )
    ours, theirs = (load_file(t.folder / "phases/0/weights.safetensors") for t in (cached, computed))
    assert set(theirs) > set(ours)
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor, theirs[name], atol=2e-5, rtol=1e-3, msg=name)


def test_features_are_computed_anew_after_a_phase_that_trained_vision(bench: Any, base: Path) -> None:
    """A phase with a frozen tower follows one that trained it: its loss must go on from there."""
    vision = {**FULL, "train": ["vision", "connector", "text"], "epochs": 2}
    text = {**FULL, "train": ["text"], "learning_rate": 1e-9, "epochs": 1}
    trained = bench.train(phases=[text, vision, text])
    second, third = trained.training.phases[1:]
    assert third.best.loss == pytest.approx(second.best.loss, abs=1e-4)


def test_best_weights_are_those_of_the_highest_accuracy(bench: Any) -> None:
    trained = bench.train(phases=[{**FULL, "train": ["connector", "text"], "epochs": 3, "learning_rate": 3e-3}],
                          validate_every=0.4)  # fmt: skip
    (phase,) = trained.training.phases
    points = [p for p in trained.curve if p.validation_accuracy is not None]
    assert len(points) == 8
    best = max(points, key=lambda p: (p.validation_accuracy, -p.validation_loss))
    assert (phase.best.step, phase.best.accuracy, phase.best.loss) == (
        best.step, best.validation_accuracy, best.validation_loss)  # fmt: skip


def test_accuracy_decides_then_loss_then_the_earlier_step() -> None:
    first = Validation(step=1, accuracy=0.8, loss=0.5)
    assert first.beats(None)
    assert Validation(step=2, accuracy=0.9, loss=2.0).beats(first), "accuracy before loss"
    assert Validation(step=2, accuracy=0.8, loss=0.4).beats(first), "between equals, the lower loss"
    assert not Validation(step=2, accuracy=0.8, loss=0.5).beats(first), "between equals in both, the earlier"
    assert not Validation(step=2, accuracy=0.7, loss=0.1).beats(first)


def test_each_part_learns_at_its_own_rate(bench: Any, base: Path) -> None:
    trained = bench.train(phases=[{
        **FULL, "train": ["vision", "connector", "text"], "part_learning_rates": {"vision": 0.0, "connector": 1e-6},
    }])  # fmt: skip
    before, after = load_model(base).state_dict(), weights_after(base, trained)
    moved = {part: max(float((after[n] - before[n]).abs().max()) for n in names(base, part))
             for part in ("vision", "connector", "text")}  # fmt: skip
    assert moved["vision"] == 0
    assert 0 < moved["connector"] < 1e-5
    assert moved["text"] > 5e-4


def test_weight_decay_spares_norms_and_biases(bench: Any, base: Path) -> None:
    still = {**FULL, "train": ["vision", "text"], "learning_rate": 1e-6, "epochs": 0.2, "schedule": "constant"}
    bare, decayed = (bench.train(phases=[{**still, "weight_decay": decay}]) for decay in (0.0, 0.9))
    a, b = (load_file(t.folder / "phases/0/weights.safetensors") for t in (bare, decayed))
    differ = {name for name in a if not torch.equal(a[name], b[name])}
    assert differ == {name for name in a if a[name].ndim >= 2}


def test_bf16_arithmetic_keeps_what_learns_in_fp32(bench: Any, base: Path) -> None:
    trained = bench.train(phases=[{**LORA, "train": ["text"]}], precision="bf16")
    assert trained.training.precision == "bf16"
    tensors = load_file(trained.folder / "phases/0/adapter_model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}
    assert changed(base, trained) == names(base, "text", linear=True)


def test_unknown_target_names_what_there_is(bench: Any) -> None:
    with pytest.raises(UserError, match=r"targets\.text: the text part has no linear layer 'query'; it has down_proj, .*q_proj"):
        bench.train(phases=[{**LORA, "train": ["text"], "targets": {"text": ["query"]}}])


@pytest.fixture
def broken(base: Path, tmp_path: Path) -> str:
    """A student whose every loss is no number."""
    folder = shutil.copytree(base, tmp_path / "broken")
    tensors = load_file(folder / "model.safetensors")
    tensors["lm_head.weight"][5] = float("nan")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return str(folder)


def test_loss_that_is_no_number_stops_the_training(bench: Any, broken: str) -> None:
    with pytest.raises(UserError, match=r"run\.trainer\.phases\[0\]: the loss is nan at step 1; lower learning_rate"):
        bench.train(student=broken, phases=[{**FULL, "train": ["text"]}])


def test_it_stops_the_training_at_a_checkpoint_before_it_is_logged(bench: Any, broken: str) -> None:
    # 600 steps: every third is logged, and the first checkpoint comes after the second.
    with pytest.raises(UserError, match=r"the loss is nan at step 1; lower learning_rate") as caught:
        bench.train(student=broken, phases=[{**FULL, "train": ["text"], "epochs": 15}], batch_size=1, checkpoint_every_steps=2)
    assert caught.value.exit_code == 2


def test_weights_that_are_no_numbers_stop_the_training_where_they_are_validated(bench: Any) -> None:
    # The loss of the one step is still one; the step itself throws the weights as far as fp32 goes.
    with pytest.raises(UserError, match=r"the validation loss is (nan|inf) at step 1; lower learning_rate"):
        bench.train(phases=[{**FULL, "train": ["text"], "epochs": 0.2, "part_learning_rates": {"text": 1e38}}])


def test_measurements_have_rate_and_memory_at_every_point_of_the_curve(bench: Any) -> None:
    trained = bench.train(phases=[{**FULL, "train": ["text"]}])
    log = trained.artifact.measurements()["log"]
    assert [row["step"] for row in log] == [point.step for point in trained.curve] == [1, 2, 3]
    assert all(row["samples_per_s"] > 0 and row["peak_rss_mb"] > 100 and row["seconds"] > 0 for row in log)


def test_the_line_of_a_validation_has_short_numbers_and_the_curve_whole_ones(bench: Any) -> None:
    shown = io.StringIO()
    trained = bench.train(phases=[{**FULL, "train": ["text"]}], progress=Progress(stream=shown))
    line = next(json.loads(line) for line in shown.getvalue().splitlines() if line.startswith("{"))
    point = next(point for point in trained.curve if point.step == line["step"])
    for key in ("loss", "validation_loss", "validation_accuracy", "learning_rate"):
        assert line[key] == float(f"{getattr(point, key):.6g}")
    assert len(repr(point.loss)) > 10


def test_trackers_and_checkpoints_do_not_name_another_training(bench: Any) -> None:
    def settings(**trainer: Any) -> dict[str, Any]:
        run_file = bench.read(bench.run_file(phases=[LORA], **trainer))
        return stage.settings(run_file.run, run_file.folder)

    assert settings() == settings(checkpoint_every_steps=7, trackers={"tensorboard": True})
    assert settings() != settings(seed=1)


@pytest.mark.skipif(importlib.util.find_spec("wandb") is not None, reason="wandb is installed")
def test_tracker_without_its_package_names_the_command(bench: Any) -> None:
    with pytest.raises(UserError, match=r"run\.trainer\.trackers\.wandb: .*`pip install wandb`"):
        bench.train(phases=[LORA], trackers={"wandb": "project"})


def test_a_run_of_weights_and_biases_ends_with_its_phase(
    bench: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "fake").mkdir()
    (tmp_path / "fake" / "wandb.py").write_text(FAKE_WANDB)
    monkeypatch.syspath_prepend(str(tmp_path / "fake"))
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    recipe = bench.read(bench.run_file(phases=[LORA, LORA], trackers={"wandb": "project"})).run
    with open_trackers(recipe, tmp_path, 0), pytest.raises(ZeroDivisionError), open_trackers(recipe, tmp_path, 1):
        raise ZeroDivisionError
    import wandb

    assert wandb.told == ["init training-phase-0", "init training-phase-1", "finish training-phase-1", "finish training-phase-0"]
    del sys.modules["wandb"]


FAKE_WANDB = """
run, told = None, []


class Run:
    def __init__(self, name):
        self.name = name

    def finish(self):
        told.append(f"finish {self.name}")


def init(*, project, name, dir):
    told.append(f"init {name}")
    return Run(name)
"""


def test_tensorboard_lies_beside_the_run_and_changes_nothing(bench: Any) -> None:
    phases = [{**FULL, "train": ["text"]}]
    plain, tracked = bench.train(phases=phases), bench.train("other", phases=phases, trackers={"tensorboard": True})
    assert plain.bytes == tracked.bytes
    keys = [stored.key for stored in bench.store("other").list("runs/") if "tfevents" in stored.key]
    assert len(keys) == 1 and "/tensorboard/phase-0/" in keys[0]
    assert not [stored for stored in bench.store("store").list("runs/") if "tfevents" in stored.key]


def test_a_phase_ends_early_where_its_validations_stop_getting_better(bench: Any) -> None:
    still = {**FULL, "train": ["text"], "epochs": 40, "learning_rate": 1e-12, "schedule": "constant"}
    trained = bench.train(phases=[still, {**LORA, "train": ["text"]}], early_stop={"patience": 2, "min_gain": 0.5})
    first, second = trained.training.phases
    assert first.steps == 15, "three epochs of five steps: one validation is the best, and two wait"
    assert second.steps == 3
    assert [point.step for point in trained.curve if point.phase == 0][-1] == 15


def test_memory_that_does_not_do_halves_the_passes_and_teaches_the_same(bench: Any) -> None:
    phases = [{**LORA, "train": ["text"], "epochs": 1, "dropout": 0.0}]
    whole = bench.train("whole", phases=phases, batch_size=12, precision="fp32")
    shown = io.StringIO()
    with memory_for(samples=3):
        small = bench.train("small", phases=phases, batch_size=12, precision="fp32", progress=Progress(stream=shown))
    assert whole.artifact.id == small.artifact.id
    assert "out of memory: passes of 6 samples" in shown.getvalue() and "out of memory: passes of 3 samples" in shown.getvalue()
    sizes = [[row["micro_batch_size"] for row in trained.artifact.measurements()["log"]] for trained in (whole, small)]
    assert sizes == [[12] * 4, [12, 3, 3, 3]], "as trained with; the planted limit holds from the second pass on"
    assert [point.step for point in small.curve] == [1, 2, 3, 4], "the effective batch is the same"
    for a, b in zip(whole.curve, small.curve, strict=True):
        assert a.loss == pytest.approx(b.loss, abs=1e-5)


def test_a_single_sample_that_does_not_fit_is_said_with_what_to_do(bench: Any) -> None:
    with memory_for(samples=0), pytest.raises(UserError, match=r"a single sample does not fit .* gradient_checkpointing: true"):
        bench.train(phases=[{**LORA, "train": ["text"]}])


@contextmanager
def memory_for(samples: int) -> Iterator[None]:
    """A device whose memory does for passes of so many samples: torch's own error comes where theirs would."""

    def refuse(module: torch.nn.Module, args: Any, kwargs: Any) -> None:
        if type(module).__name__ == "LlamaModel" and module.training and len(kwargs["inputs_embeds"]) > samples:
            raise torch.OutOfMemoryError("CUDA out of memory (planted)")

    handles: list[Any] = []

    def of_every_model(module: torch.nn.Module, args: Any) -> None:
        if type(module).__name__ == "LlamaModel" and not getattr(module, "planted", False):
            module.planted = True  # type: ignore[assignment]
            handles.append(module.register_forward_pre_hook(refuse, with_kwargs=True))

    first = register_module_forward_pre_hook(of_every_model)
    try:
        yield
    finally:
        for handle in (first, *handles):
            handle.remove()


def test_activations_that_are_computed_again_change_no_bit(bench: Any) -> None:
    phases = [{**LORA, "train": ["vision", "text"], "dropout": 0.2}]
    plain = bench.train("plain", phases=phases)
    again = bench.train("again", phases=phases, gradient_checkpointing=True)
    assert plain.bytes == again.bytes


def test_variants_of_images_train_and_validation_sees_none_of_them(bench: Any) -> None:
    phases = [{**FULL, "train": ["connector", "text"], "epochs": 2}]
    shown = io.StringIO()
    plain = bench.train("plain", phases=phases)
    varied = bench.train("varied", phases=phases, augment={"variants": 2, "turned": 0}, progress=Progress(stream=shown))
    assert "40 images train in 3 looks each" in shown.getvalue()
    assert plain.training.images == varied.training.images and len(plain.curve) == len(varied.curve)
    assert [a.loss for a in plain.curve] != [b.loss for b in varied.curve]


def test_variants_are_the_same_with_kept_features_and_with_computed_ones(bench: Any) -> None:
    phase = {**FULL, "epochs": 1}
    kept = bench.train(phases=[{**phase, "train": ["connector", "text"]}], max_grad_norm=1e9, augment={"variants": 2})
    computed = bench.train(
        phases=[{**phase, "train": ["vision", "connector", "text"], "part_learning_rates": {"vision": 0.0}}],
        max_grad_norm=1e9, augment={"variants": 2},
    )  # fmt: skip
    for a, b in zip(kept.curve, computed.curve, strict=True):
        assert a.loss == pytest.approx(b.loss, abs=1e-4)


def test_a_base_of_few_bits_is_refused_where_there_is_no_cuda(bench: Any) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is CUDA")
    with pytest.raises(UserError, match=r"run\.trainer\.base_bits: 4 bits are made by kernels for CUDA, .* runs on cpu; use 16"):
        bench.train(phases=[LORA], base_bits=4)


def test_weights_that_learn_whole_beside_adapters_are_trained_and_merged(bench: Any, base: Path) -> None:
    trained = bench.train(phases=[{**LORA, "train": ["text"], "full": ["lm_head", "embed_tokens"]}])
    whole = {"lm_head.weight", "model.text_model.embed_tokens.weight"}
    assert changed(base, trained) == trained.training.changed == names(base, "text", linear=True) | whole


def test_the_phone_must_be_able_to_write_the_longest_answer(bench: Any) -> None:
    path = bench.run_file(phases=[LORA])
    data = yaml.safe_load(path.read_text())
    data["run"]["device"]["max_new_tokens"] = 1
    path.write_text(yaml.safe_dump(data))
    store = bench.store("store")
    bench.label(path, store)
    with pytest.raises(UserError, match=r"max_new_tokens: 1 is too small for the longest answer .* takes \d+ tokens .* at least"):
        run_stage("trainer", bench.read(path), store, bench.environment(), Progress())
