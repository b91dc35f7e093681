"""For every setting of a phase: exactly the named tensors have gradients, and exactly they differ after the merge."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from pocketvlm.artifacts.checkpoint_layout import PhaseRecord, Validation
from pocketvlm.errors import UserError
from pocketvlm.run_file import Phase, Task
from pocketvlm.stages.training.learner import Learner
from pocketvlm.student import adapters
from pocketvlm.student.checkpoint import load_model
from pocketvlm.student.families import FAMILIES, HEAD, read_geometry
from pocketvlm.student.families.idefics3 import TileEye
from pocketvlm.student.processor_files import load_tokenizer
from pocketvlm.student.prompt import PromptEncoder
from pocketvlm.student.tiny import TILE_PX, build_tiny

FAMILY = FAMILIES["SmolVLMForConditionalGeneration"]
TASK = Task(question="Which?", classes={"leaf": "", "stone": ""})
EMBEDDINGS = "model.text_model.embed_tokens"


@pytest.fixture(scope="module")
def untied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny(tmp_path_factory.mktemp("untied") / "tiny", seed=0, longest_edge_px=TILE_PX)


@pytest.fixture(params=["untied", "tied_tiny"])
def folder(request: pytest.FixtureRequest) -> Path:
    found: Path = request.getfixturevalue(request.param)
    return found


def opened(folder: Path, phase: Phase) -> tuple[Any, list[str], list[str]]:
    """A student whose phase may begin; its LoRA targets, and what learns whole beside them."""
    model: Any = load_model(folder)
    if phase.method == "full":
        adapters.train_parts(model, FAMILY, phase.train)
        return model, [], []
    full = adapters.resolve_full(model, FAMILY, phase)
    targets = adapters.resolve_targets(model, FAMILY, phase)
    adapters.inject(model, targets, rank=phase.rank, alpha=phase.alpha, dropout=0.0)
    adapters.train_whole(model, full)
    return model, targets, full


def batch(folder: Path, model: Any) -> dict[str, torch.Tensor]:
    """Two samples with another image and another answer, as `Learner.forward` takes them."""
    encoder = PromptEncoder(load_tokenizer(folder), read_geometry(folder), TASK)
    draw, eye = np.random.default_rng(0), TileEye(TILE_PX, TILE_PX)
    seen = [eye.look(Image.fromarray(draw.integers(0, 256, (32, 32, 3), dtype=np.uint8))) for _ in range(2)]
    # "stone" is longer than "leaf": the shorter sample is filled up.
    samples = [encoder.sample(sight.layout, answer) for sight, answer in zip(seen, TASK.classes, strict=True)]
    longest = max(len(sample.ids) for sample in samples)
    ids = [sample.ids + [encoder.end_id] * (longest - len(sample.ids)) for sample in samples]
    labels = [sample.labels + [-100] * (longest - len(sample.labels)) for sample in samples]
    return {"ids_BS": torch.tensor(ids), "labels": torch.tensor(labels), "layout": torch.tensor([0, 0, 1, 1]),
            "tiles": torch.cat([torch.from_numpy(sight.tiles) for sight in seen])}  # fmt: skip


def step(folder: Path, model: Any) -> set[str]:
    """Goes one way down; returns the names in memory of all that has a gradient that is not zero."""
    learner = Learner(model, FAMILY, "fp32")
    for _ in range(2):  # B is zero at first, so that A has no gradient before the second step
        model.zero_grad()
        learner(**batch(folder, model)).backward()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.grad is not None:
                    parameter -= 1e-2 * parameter.grad.sign() * (parameter.grad != 0)
    return {name for name, parameter in model.named_parameters() if parameter.grad is not None and parameter.grad.any()}


def named(folder: Path, phase: dict[str, Any]) -> set[str]:
    """State-dict names that a phase is about, told from the names alone."""
    model: Any = load_model(folder)
    own = {name for name, _ in model.named_parameters() if FAMILY.part_of(name) in phase["train"]}
    if phase["method"] == "full":
        return own
    linear = {f"{path}.weight" for path, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    whole = {"embed_tokens": EMBEDDINGS, "lm_head": HEAD, "model.text_model.norm": "model.text_model.norm"}
    chosen = {f"{whole[name]}.weight" for name in phase.get("full", [])}
    if model.lm_head.weight is model.model.text_model.embed_tokens.weight and f"{HEAD}.weight" in chosen:
        chosen = chosen - {f"{HEAD}.weight"} | {f"{EMBEDDINGS}.weight"}
    ends = phase.get("targets", {})
    layers = {name for name in own & linear - {f"{HEAD}.weight"}
              if FAMILY.part_of(name) not in ends or name.endswith(tuple(f"{end}.weight" for end in ends[FAMILY.part_of(name)]))}
    return layers | chosen


PHASES: list[dict[str, Any]] = [
    {"method": "full", "train": ["text"]},
    {"method": "full", "train": ["connector"]},
    {"method": "full", "train": ["vision"]},
    {"method": "full", "train": ["connector", "text"]},
    {"method": "full", "train": ["vision", "connector", "text"]},
    {"method": "lora", "train": ["text"]},
    {"method": "lora", "train": ["vision"], "targets": {"vision": ["fc1"]}},
    {"method": "lora", "train": ["vision", "connector", "text"]},
    {"method": "lora", "train": ["connector", "text"], "targets": {"text": ["q_proj", "v_proj"]}},
    {"method": "lora", "train": ["text"], "full": ["lm_head", "embed_tokens"]},
    {"method": "lora", "train": ["text"], "full": ["lm_head"]},
    {"method": "lora", "train": ["text"], "full": ["embed_tokens", "model.text_model.norm"], "targets": {"text": ["q_proj"]}},
]


@pytest.mark.parametrize("settings", PHASES, ids=lambda s: f"{s['method']} {' '.join(s['train'])} {' '.join(s.get('full', []))}")
def test_exactly_the_named_tensors_have_gradients_and_change(folder: Path, settings: dict[str, Any], tmp_path: Path) -> None:
    phase, wanted = Phase.model_validate(settings), named(folder, settings)
    model, targets, full = opened(folder, phase)
    moved = step(folder, model)
    adapted = {name.replace(f".lora_{side}.default.weight", ".weight") for name in moved for side in "AB" if ".lora_" in name}
    assert {name for name in adapted if ".lora_" not in name} | {name for name in moved if ".lora_" not in name} == wanted
    assert sum(".lora_" in name for name in moved) == 2 * len(targets), "A and B of each"
    adapters.save_trained(model, tmp_path / "trained.safetensors")
    record = PhaseRecord(
        index=0, method=phase.method, parts=phase.train, targets=targets, full=full, rank=phase.rank, alpha=phase.alpha, steps=1,
        changed=sorted(wanted), best=Validation(step=1, accuracy=0, loss=0),
    )  # fmt: skip
    adapters.write_phase(tmp_path, record, tmp_path / "trained.safetensors")
    merged: Any = load_model(folder)
    before = {name: parameter.clone() for name, parameter in merged.named_parameters()}
    adapters.apply_phase(merged, tmp_path, record, merge=True)
    assert {name for name, parameter in merged.named_parameters() if not torch.equal(parameter, before[name])} == wanted
    head, embeddings = merged.lm_head.weight, merged.model.text_model.embed_tokens.weight
    assert (head is embeddings) == read_geometry(folder).tied_head, "what shares its weights still does, and no other"
    if phase.method == "lora":
        on: Any = load_model(folder)
        adapters.apply_phase(on, tmp_path, record, merge=False)
        inputs = batch(folder, model)
        with torch.no_grad():
            logits = [Learner(student, FAMILY, "fp32")(**inputs) for student in (model.eval(), on, merged)]
        assert logits[0] == pytest.approx(float(logits[1]), abs=1e-5) and logits[0] == pytest.approx(float(logits[2]), abs=1e-4)


def test_weights_that_learnt_whole_lie_beside_the_adapters(tied_tiny: Path, tmp_path: Path) -> None:
    phase = Phase(method="lora", train=["text"], full=["lm_head", "embed_tokens"])
    model, targets, full = opened(tied_tiny, phase)
    assert full == [f"{EMBEDDINGS}.weight"], "one tensor, under its first name"
    adapters.save_trained(model, tmp_path / "trained.safetensors")
    record = PhaseRecord(index=0, method="lora", parts=["text"], targets=targets, full=full, rank=phase.rank, alpha=phase.alpha,
                         steps=1, changed=[], best=Validation(step=1, accuracy=0, loss=0))  # fmt: skip
    adapters.write_phase(tmp_path, record, tmp_path / "trained.safetensors")
    assert set(load_file(tmp_path / "phases/0/weights.safetensors")) == set(full)
    assert all(".lora_" in name for name in load_file(tmp_path / "phases/0/adapter_model.safetensors"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"full": ["embed"]}, r"full: text of this student has no module 'embed' with weights; it has .*embed_tokens"),
        ({"full": ["fc1"]}, r"full: text of this student has no module 'fc1'"),
    ],
)
def test_a_module_that_there_is_not_is_refused_with_those_that_are(untied: Path, settings: Any, message: str) -> None:
    with pytest.raises(UserError, match=r"run\.trainer\.phases\." + message):
        adapters.resolve_full(load_model(untied), FAMILY, Phase(method="lora", train=["text"], **settings))


def test_a_layer_that_learns_whole_gets_no_adapter(untied: Path) -> None:
    model = load_model(untied)
    phase = Phase(method="lora", train=["text"], full=["q_proj"])
    assert not [path for path in adapters.resolve_targets(model, FAMILY, phase) if path.endswith("q_proj")]
    both = Phase(method="lora", train=["text"], full=["q_proj"], targets={"text": ["q_proj"]})
    with pytest.raises(UserError, match=r"targets\.text: .*q_proj learns whole, since full names it"):
        adapters.resolve_targets(model, FAMILY, both)
