"""The merger on the tiny student, with phases written as the trainer writes them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from pocketvlm.artifacts.artifact import publish
from pocketvlm.artifacts.checkpoint_layout import PhaseRecord, Training, Validation, write_training
from pocketvlm.artifacts.folder import FolderStore
from pocketvlm.artifacts.partial import Partial
from pocketvlm.environment import Environment, Shard
from pocketvlm.errors import DataError
from pocketvlm.progress import Progress
from pocketvlm.run_file import Recipe, Student
from pocketvlm.stages import merger
from pocketvlm.stages.sharing import Desk
from pocketvlm.stages.stage import Work
from pocketvlm.student.adapters import inject, save_trained, train_parts, trained_tensors, write_phase
from pocketvlm.student.checkpoint import load_model
from pocketvlm.student.families import read_geometry
from pocketvlm.student.processor_files import load_tokenizer
from pocketvlm.student.tiny import build_tiny

BEST = Validation(step=1, accuracy=1.0, loss=0.0)
RECIPE = Recipe.model_validate({
    "name": "merging", "student": {"model": "tiny"}, "device": {"canvas_px": 32, "longest_edge_px": 64},
    "task": {"question": "Which?", "classes": {"a": "", "b": ""}}, "labeller": {"source": {"kind": "digits"}},
    "trainer": {"phases": [{}]},
})  # fmt: skip


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny(tmp_path_factory.mktemp("merger") / "tiny", seed=0, longest_edge_px=64)


@pytest.fixture
def merge(tmp_path: Path) -> Callable[..., Path]:
    def run(learnt: Path, training: Training, recipe: Recipe = RECIPE) -> Path:
        write_training(learnt, training)
        store = FolderStore(tmp_path / "store")
        trained = publish(store, "checkpoints", "0" * 16, learnt, inputs={}, settings={}, facts={})
        out = tmp_path / "out"
        out.mkdir()
        merger.make(Work(recipe, tmp_path, store, "1" * 16, {"trainer": trained}, out, tmp_path / "scratch",
                         Partial(store, "models", "1" * 16),
                         Desk(store, "models", "1" * 16, Shard(), tmp_path / "shares", Progress()), Progress(),
                         Environment()))  # fmt: skip
        return out

    return run


def training(*phases: PhaseRecord) -> Training:
    return Training(precision="fp32", images={"train": 1, "validation": 1}, phases=list(phases))


def full_phase(
    learnt: Path, tiny: Path, names: list[str], *, listed: list[str] | None = None, delta: float = 0.25
) -> PhaseRecord:
    weights = load_model(tiny).state_dict()
    (learnt / "phases" / "0").mkdir(parents=True)
    save_file({name: weights[name] + delta for name in names}, learnt / "phases" / "0" / "weights.safetensors")
    return PhaseRecord(index=0, method="full", parts=["text"], targets=[], rank=None, alpha=None,
                       changed=sorted(listed or names), steps=1, best=BEST)  # fmt: skip


NORM, HEAD = "model.text_model.norm.weight", "lm_head.weight"


def test_exactly_the_trained_tensors_change_and_are_counted_by_part(
    merge: Callable[[Path, Training], Path], tiny: Path, tmp_path: Path
) -> None:
    out = merge(tmp_path / "learnt", training(full_phase(tmp_path / "learnt", tiny, [NORM, HEAD])))
    assert json.loads((out / "merge.json").read_text())["changed"] == {"vision": 0, "connector": 0, "text": 2}
    base, merged = load_model(tiny).state_dict(), load_model(out).state_dict()
    assert {name for name in base if not base[name].equal(merged[name])} == {NORM, HEAD}


def test_a_tied_student_changes_its_embeddings_once(
    merge: Callable[..., Path], tied_tiny: Path, tmp_path: Path
) -> None:
    model: Any = load_model(tied_tiny)
    train_parts(model, read_geometry(tied_tiny).family, ["text"])
    names = sorted(trained_tensors(model))
    assert HEAD not in names
    recipe = RECIPE.model_copy(update={"student": Student(model=str(tied_tiny))})
    out = merge(tmp_path / "learnt", training(full_phase(tmp_path / "learnt", tied_tiny, names)), recipe)
    assert json.loads((out / "merge.json").read_text())["changed"] == {"vision": 0, "connector": 0, "text": len(names)}
    merged: Any = load_model(out)
    assert merged.lm_head.weight is merged.model.text_model.embed_tokens.weight
    assert not merged.lm_head.weight.equal(model.lm_head.weight)


def test_a_tensor_that_changed_without_being_trained_is_refused(
    merge: Callable[[Path, Training], Path], tiny: Path, tmp_path: Path
) -> None:
    record = full_phase(tmp_path / "learnt", tiny, [NORM, HEAD], listed=[NORM])
    with pytest.raises(DataError, match=r"1 tensors changed that were not trained, first lm_head.weight"):
        merge(tmp_path / "learnt", training(record))


def test_a_trained_tensor_that_is_as_in_the_base_is_refused(
    merge: Callable[[Path, Training], Path], tiny: Path, tmp_path: Path
) -> None:
    record = full_phase(tmp_path / "learnt", tiny, [NORM, HEAD], delta=0.0)
    with pytest.raises(DataError, match=r"2 trained tensors are as in the base, first lm_head.weight"):
        merge(tmp_path / "learnt", training(record))


def lora_phase(learnt: Path, tiny: Path, targets: list[str], tmp_path: Path) -> PhaseRecord:
    record = PhaseRecord(index=0, method="lora", parts=["text"], targets=targets, rank=4, alpha=8, steps=1, best=BEST,
                         changed=[f"{target}.weight" for target in targets])  # fmt: skip
    model: Any = load_model(tiny)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    inject(model, targets, rank=4, alpha=8, dropout=0.0)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in trained_tensors(model).values():
            parameter.normal_(0, 0.1)
    save_trained(model, tmp_path / "trained.safetensors")
    write_phase(learnt, record, tmp_path / "trained.safetensors")
    return record


def test_merged_lora_answers_as_with_the_adapter_on(
    merge: Callable[[Path, Training], Path], tiny: Path, tmp_path: Path
) -> None:
    targets = [f"model.text_model.layers.{i}.self_attn.q_proj" for i in range(4)]
    out = merge(tmp_path / "learnt", training(lora_phase(tmp_path / "learnt", tiny, targets, tmp_path)))
    proof = json.loads((out / "merge.json").read_text())
    assert proof["changed"]["text"] == 4
    assert proof["merged_against_adapter_nats"] <= merger.MAX_MERGE_NATS
    assert proof["bf16_rounding_nats"] > 0


def test_checkpoint_has_what_the_converter_needs_and_no_trace_of_folders(
    merge: Callable[[Path, Training], Path], tiny: Path, tmp_path: Path
) -> None:
    out = merge(tmp_path / "learnt", training(full_phase(tmp_path / "learnt", tiny, [NORM])))
    config = json.loads((out / "config.json").read_text())
    assert config["text_config"]["architectures"] == ["VLlama3ForCausalLM"]
    for name in ("preprocessor_config.json", "processor_config.json"):
        settings = json.loads((out / name).read_text())
        assert settings.get("image_processor", settings)["size"]["longest_edge"] == 64
    assert read_geometry(out) == read_geometry(tiny)
    assert load_tokenizer(out).get_vocab() == load_tokenizer(tiny).get_vocab()
    for path in out.iterdir():
        assert str(tmp_path).encode() not in path.read_bytes(), path.name
