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

from pocketvlm.artifacts.checkpoint_layout import Training, read_training
from pocketvlm.errors import DataError
from pocketvlm.run_file import Recipe
from pocketvlm.stages.stage import Made, Work
from pocketvlm.student import base
from pocketvlm.student.families import PARTS, Family, read_geometry

if TYPE_CHECKING:
    from torch import Tensor

KIND = "models"
INPUTS = ("trainer",)
MAX_MERGE_NATS = 1e-3
"""Merged against adapter-on, both fp32: the same sums in another order. Measured 2e-6 on the tiny student."""
PROBE_TOKENS = 48


def settings(recipe: Recipe, folder: Path) -> dict[str, Any]:
    """The base, and the tile budget that the processor files carry."""
    return {"student": base.identity(recipe.student, folder), "longest_edge_px": recipe.device.longest_edge_px}


def make(work: Work) -> Made:
    """Merges, proves and saves. Raises DataError when other tensors changed than were trained, or the merge is wrong."""
    import torch

    from pocketvlm.student.adapters import apply_phase
    from pocketvlm.student.checkpoint import load_model

    torch.set_num_threads(work.environment.thread_count())
    clock = time.monotonic()
    source = base.fetch_base(work.recipe, work.recipe_folder, work.scratch, work.environment)
    learnt = work.fetch("trainer")
    training = read_training(learnt)
    geometry = read_geometry(source)
    model = load_model(source)
    before = {name: tensor.clone() for name, tensor in own_tensors(model).items()}
    for phase in training.phases:
        apply_phase(model, learnt, phase, merge=True)
    changes = changed_tensors(before, own_tensors(model), training, geometry.family)
    del before
    nats = _against_adapter(model, source, learnt, training)
    rounded = _rounding(model)
    counts = ", ".join(f"{count} tensors of {part}" for part, count in changes.items())
    work.progress.line(f"merged {len(training.phases)} phases, changed {counts}")
    _save(model, work, source, geometry.tile_px)
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


def _against_adapter(model: Any, source: Path, learnt: Path, training: Training) -> float | None:
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
    nats = _largest_difference(_probe(model), _probe(other))
    if nats > MAX_MERGE_NATS:
        raise DataError(f"the merged model differs by {nats:.2g} nats from the adapter; at most {MAX_MERGE_NATS:g} is rounding")
    return nats


def _rounding(model: Any) -> float:
    """Rounds the weights to bf16, as they are saved, and returns what that changes (nats)."""
    import torch

    exact = _probe(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.bfloat16())
    return _largest_difference(exact, _probe(model))


def _probe(model: Any) -> Tensor:
    """Log-probabilities (nats) over a fixed stream of tokens and one image of fixed noise: all parts are run through."""
    import torch

    from pocketvlm.student import forward

    config = model.config
    draw = torch.Generator().manual_seed(0)
    side = config.vision_config.image_size
    with torch.inference_mode():
        pixels_NCHW = torch.rand(1, 3, side, side, generator=draw) * 2 - 1
        features_NTC = forward.vision_features(model, pixels_NCHW)
        ids_BS = torch.randint(0, config.image_token_id, (1, PROBE_TOKENS), generator=draw)
        ids_BS = torch.cat([torch.full((1, features_NTC.shape[1]), config.image_token_id), ids_BS], dim=1)
        embeddings_BSD = forward.embed(model, ids_BS, features_NTC, config.image_token_id)
        return torch.log_softmax(model.lm_head(forward.hidden(model, embeddings_BSD)).float(), dim=-1)


def _largest_difference(a: Tensor, b: Tensor) -> float:
    return round(float((a - b).abs().max()), 6)


def _save(model: Any, work: Work, source: Path, tile_px: int) -> None:
    import torch

    from pocketvlm.student.checkpoint import complete_config, load_tokenizer, save_processor

    model.to(torch.bfloat16).save_pretrained(work.folder)
    complete_config(work.folder)
    longest_edge_px = work.recipe.device.longest_edge_px
    save_processor(work.folder, load_tokenizer(source), tile_px=tile_px, longest_edge_px=longest_edge_px)
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
