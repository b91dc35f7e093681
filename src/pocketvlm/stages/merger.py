"""The merger: base checkpoint + what training learnt -> one checkpoint in Hugging Face layout, bf16 safetensors.

Files of the artifact: config.json, model*.safetensors, tokenizer, chat template, both processor files (as llama.cpp's
converter needs them) and `merge.json`, the proof: which tensors changed, part by part, and how far merged weights
answer from adapters that are still on.
"""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from pocketvlm.artifacts.checkpoint_layout import Training, read_training
from pocketvlm.errors import DataError
from pocketvlm.run_file import Recipe
from pocketvlm.stages.stage import Made, Work
from pocketvlm.student import base
from pocketvlm.student.families import PARTS, Family, Geometry, read_geometry
from pocketvlm.student.prompt import PromptEncoder

if TYPE_CHECKING:
    from torch import Tensor

KIND = "models"
INPUTS = ("trainer",)
MAX_MERGE_NATS = 1e-3
"""Merged against adapter-on, both fp32: the same sums in another order. Measured 2e-6 on the tiny student."""
PROBE_TOKENS = 48


def settings(recipe: Recipe, folder: Path) -> dict[str, Any]:
    """The base, and what the processor files carry of the device."""
    device = {"canvas_px": recipe.device.canvas_px, "longest_edge_px": recipe.device.longest_edge_px}
    return {"student": base.identity(recipe.student, folder), **device}


def make(work: Work) -> Made:
    """Merges, proves and saves. Raises DataError when other tensors changed than were trained, or the merge is wrong."""
    import torch

    from pocketvlm.student.adapters import apply_phase
    from pocketvlm.student.checkpoint import load_model

    torch.set_num_threads(work.environment.thread_count())
    clock = time.monotonic()
    source = base.fetch_base(work.recipe, work.recipe_folder, work.scratch, work.environment, work.store)
    learnt = work.fetch("trainer")
    training = read_training(learnt)
    geometry = read_geometry(source)
    model = load_model(source)
    before = {name: tensor.clone() for name, tensor in own_tensors(model).items()}
    for phase in training.phases:
        apply_phase(model, learnt, phase, merge=True)
    changes = changed_tensors(before, own_tensors(model), training, geometry.family)
    del before
    probe = _Probe(geometry, work, source)
    nats = _against_adapter(model, probe, source, learnt, training)
    rounded = _rounding(model, probe)
    counts = ", ".join(f"{count} tensors of {part}" for part, count in changes.items())
    work.progress.line(f"merged {len(training.phases)} phases, changed {counts}")
    _save(model, work, source, geometry)
    proof = {"changed": changes, "merged_against_adapter_nats": nats, "bf16_rounding_nats": rounded}
    (work.folder / "merge.json").write_text(json.dumps(proof, indent=1, sort_keys=True) + "\n")
    return Made(facts=proof, measurements={"seconds": round(time.monotonic() - clock, 3)}, versions=_versions())


def own_tensors(model: Any) -> dict[str, Tensor]:
    """The state dict with shared tensors once, under the first of their names, as training names them.

    Of a tied student, `lm_head.weight` is the token embeddings under another name.
    """
    names: dict[int, str] = {}
    state: dict[str, Tensor] = model.state_dict()
    for name, tensor in state.items():
        names.setdefault(tensor.data_ptr(), name)
    return {name: state[name] for name in names.values()}


def changed_tensors(
    before: dict[str, Tensor], after: dict[str, Tensor], training: Training, family: Family
) -> dict[str, int]:
    """Changed tensors by part. Raises DataError when they are not exactly those that were trained."""
    changed = {name for name in before if not before[name].equal(after[name])}
    untouched = {name for name in training.changed if name in before} - changed
    if stray := sorted(changed - training.changed):
        raise DataError(f"{len(stray)} tensors changed that were not trained, first {stray[0]}; train again from this base")
    if untouched:
        raise DataError(f"{len(untouched)} trained tensors are as in the base, first {min(untouched)}; nothing was learnt there")
    return {part: sum(family.part_of(name) == part for name in changed) for part in PARTS}


def _against_adapter(model: Any, probe: _Probe, source: Path, learnt: Path, training: Training) -> float | None:
    """Largest difference (nats) of merged weights from the last phase's adapter left on; None after a full phase.

    Raises DataError beyond MAX_MERGE_NATS.
    """
    from pocketvlm.student.adapters import apply_phase
    from pocketvlm.student.checkpoint import load_model

    last = training.phases[-1]
    if last.method != "lora":
        return None
    other = load_model(source)
    for phase in training.phases:
        apply_phase(other, learnt, phase, merge=phase is not last)
    nats = _largest_difference(probe(model), probe(other))
    if nats > MAX_MERGE_NATS:
        raise DataError(f"the merged model differs by {nats:.2g} nats from the adapter; at most {MAX_MERGE_NATS:g} is rounding")
    return nats


def _rounding(model: Any, probe: _Probe) -> float:
    """Rounds the weights to bf16, as they are saved, and returns what that changes (nats)."""
    import torch

    exact = probe(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.bfloat16())
    return _largest_difference(exact, probe(model))


class _Probe:
    """Log-probabilities (nats) over one image of fixed noise and a fixed stream of tokens: all parts are run through."""

    def __init__(self, geometry: Geometry, work: Work, source: Path) -> None:
        import torch

        from pocketvlm.student.processor_files import load_tokenizer

        device, draw = work.recipe.device, np.random.default_rng(0)
        side = device.canvas_px or device.longest_edge_px
        noise = Image.fromarray(draw.integers(0, 256, (side, side, 3), dtype=np.uint8))
        sight = geometry.family.eye(geometry, device, source).look(noise)
        tokenizer = load_tokenizer(source)
        encoder = PromptEncoder(tokenizer, geometry, work.recipe.task)
        # Not `all_special_ids`: those are the named ones, and an image token more would want features of its own.
        special = set(tokenizer.added_tokens_decoder)
        plain = [number for number in range(len(tokenizer)) if number not in special]
        ids = [*encoder.image(sight.layout), *draw.choice(plain, PROBE_TOKENS).tolist()]
        self._family, self._ids_BS = geometry.family, torch.tensor([ids])
        self._tiles, self._places = torch.from_numpy(sight.tiles), sight.places

    def __call__(self, model: Any) -> Tensor:
        import torch

        with torch.inference_mode():
            features_NTC = self._family.features(model, self._tiles)[self._places]
            hidden_BSD, _ = self._family.prefill(model, self._ids_BS, features_NTC)
            return torch.log_softmax(self._family.logits(model, hidden_BSD).float(), dim=-1)


def _largest_difference(a: Tensor, b: Tensor) -> float:
    return round(float((a - b).abs().max()), 6)


def _save(model: Any, work: Work, source: Path, geometry: Geometry) -> None:
    import torch

    from pocketvlm.student.checkpoint import complete_config

    model.to(torch.bfloat16).save_pretrained(work.folder)
    complete_config(work.folder)
    geometry.family.save_processor(work.folder, source, geometry, work.recipe.device)
    _forget_places(work.folder)


def _forget_places(folder: Path) -> None:
    """transformers writes the folder that a checkpoint came from into its files; equal runs must give equal bytes."""
    for path in (folder / "config.json", folder / "tokenizer_config.json"):
        if path.is_file():
            data = json.loads(path.read_text())
            kept = {key: value for key, value in data.items() if not re.fullmatch(r"_?name_or_path|local_files_only", key)}
            path.write_text(json.dumps(kept, indent=2, sort_keys=True) + "\n")


def _versions() -> dict[str, str]:
    from importlib.metadata import version

    return {name: version(name) for name in ("torch", "transformers", "peft", "safetensors")}
