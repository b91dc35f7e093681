"""What a phase of training learns: which tensors, LoRA adapters on them, and laying the result over a base.

The layout on disk is that of artifacts/checkpoint_layout.py. Trainer and merger both use this file, so that what was
trained is what is merged.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from pocketvlm.artifacts.checkpoint_layout import ADAPTER, ADAPTER_CONFIG, ADAPTER_PREFIX, WEIGHTS, PhaseRecord
from pocketvlm.errors import DataError, UserError
from pocketvlm.run_file import Part, Phase
from pocketvlm.student.families import Family, full_modules, lora_targets

_ADAPTER_NAME = "default"
"""peft's own name for the only adapter; it is part of the names in memory and not of those on disk."""


def resolve_targets(model: Any, family: Family, phase: Phase, *, where: str = "run.trainer.phases") -> list[str]:
    """Paths of the linear layers that a LoRA phase puts adapters on, in the model's order within each part.

    The rule is `lora_targets`. `where` names the phase in errors. Raises UserError for targets that cannot be.
    """
    layers = [path for path, module in model.named_modules() if isinstance(module, nn.Linear)]
    tied_head = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    targets, problems = lora_targets(family, layers, phase, tied_head=tied_head)
    if problems:
        raise UserError("\n".join(f"{where}.{problem}" for problem in problems))
    return targets


def inject(model: Any, targets: list[str], *, rank: int, alpha: float, dropout: float, seed: int = 0) -> None:
    """Puts LoRA layers (peft) in the place of the targets; only A and B learn. B is zero, so nothing has changed yet.

    Module paths stay, so forward.py works as before. A is drawn from `seed`.
    """
    from peft import LoraConfig, inject_adapter_in_model

    config = LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=list(targets), bias="none")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inject_adapter_in_model(config, model, adapter_name=_ADAPTER_NAME)


def resolve_full(model: Any, family: Family, phase: Phase, *, where: str = "run.trainer.phases") -> list[str]:
    """Names, in memory and on disk, of the tensors that a LoRA phase trains whole; shared ones once, under their first name.

    To be asked before `inject`, which renames the targets' own. Raises UserError for modules that there are not.
    """
    paths = [path for path, module in model.named_modules() if any(True for _ in module.parameters(recurse=False))]
    chosen, problems = full_modules(family, paths, phase)
    if problems:
        raise UserError("\n".join(f"{where}.{problem}" for problem in problems))
    modules = dict(model.named_modules())
    wanted = {id(parameter) for path in chosen for parameter in modules[path].parameters(recurse=False)}
    return [name for name, parameter in model.named_parameters() if id(parameter) in wanted]


def train_whole(model: Any, names: list[str]) -> None:
    """These tensors learn beside what learns already."""
    for name, parameter in model.named_parameters():
        if name in names:
            parameter.requires_grad_(True)


def train_parts(model: Any, family: Family, parts: list[Part]) -> None:
    """Full training: every tensor of the parts learns, no other."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(family.part_of(name) in parts)


def trained_tensors(model: Any) -> dict[str, nn.Parameter]:
    """What learns, by its name in memory; shared tensors once."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def save_trained(model: Any, path: Path) -> None:
    """Writes what learns, fp32, under its names in memory."""
    save_file({name: tensor.detach().float().cpu().contiguous() for name, tensor in trained_tensors(model).items()}, path)


@torch.no_grad()
def load_trained(model: Any, path: Path) -> None:
    """Reads what `save_trained` wrote into a model of which the same learns. Raises DataError otherwise."""
    tensors = load_file(path)
    wanted = trained_tensors(model)
    if tensors.keys() != wanted.keys():
        odd = sorted(tensors.keys() ^ wanted.keys())
        raise DataError(f"{path}: does not fit this phase, for example {odd[0]}; delete the partial work and run again")
    for name, parameter in wanted.items():
        parameter.copy_(tensors[name])


def write_phase(folder: Path, record: PhaseRecord, trained: Path) -> None:
    """Writes a phase's files into its folder of the artifact in `folder`, from what `save_trained` wrote."""
    to = folder / record.folder
    to.mkdir(parents=True)
    tensors = load_file(trained)
    whole = {name: tensor for name, tensor in tensors.items() if record.method == "full" or name in record.full}
    if whole:
        save_file(whole, to / WEIGHTS, metadata={"format": "pt"})
    if record.method == "full":
        return
    named = {ADAPTER_PREFIX + name.replace(f".{_ADAPTER_NAME}.", "."): tensor for name, tensor in tensors.items()
             if name not in whole}  # fmt: skip
    save_file(named, to / ADAPTER, metadata={"format": "pt"})
    (to / ADAPTER_CONFIG).write_text(json.dumps(_peft_config(record), indent=2, sort_keys=True) + "\n")


def apply_phase(model: Any, folder: Path, phase: PhaseRecord, *, merge: bool) -> None:
    """Lays a phase of the artifact in `folder` over a model that has all phases before it.

    What learnt whole is put in place. LoRA: merged into the targets' weights, computed in fp32 and rounded
    once to the model's dtype; or, with merge=False, kept as adapters beside them (only sensible for the last phase).
    Raises DataError if the phase does not fit the model.
    """
    where = folder / phase.folder
    if phase.method == "full" or phase.full:
        # Before any adapter: a tensor that other names share is put once, and stays shared.
        _put(dict(model.named_parameters()), load_file(where / WEIGHTS), where)
    if phase.method == "lora" and merge:
        _merge(model, phase, where)
    elif phase.method == "lora":
        assert phase.rank and phase.alpha, "a LoRA phase has both"
        inject(model, phase.targets, rank=phase.rank, alpha=phase.alpha, dropout=0.0)
        tensors = {_name_in_memory(name): tensor for name, tensor in load_file(where / ADAPTER).items()}
        _put(trained_tensors(model), tensors, where)
        model.eval()


@torch.no_grad()
def _put(parameters: Mapping[str, nn.Parameter], tensors: Mapping[str, Tensor], where: Path) -> None:
    for name, tensor in tensors.items():
        if name not in parameters or parameters[name].shape != tensor.shape:
            raise DataError(f"{where}: holds {name} {tuple(tensor.shape)}, which this base has not; use the base that "
                            "it was trained from")  # fmt: skip
        parameters[name].copy_(tensor)


@torch.no_grad()
def _merge(model: Any, phase: PhaseRecord, where: Path) -> None:
    assert phase.rank and phase.alpha, "a LoRA phase has both"
    modules = dict(model.named_modules())
    with safe_open(where / ADAPTER, framework="pt") as tensors:
        for path in phase.targets:
            a_RI = tensors.get_tensor(f"{ADAPTER_PREFIX}{path}.lora_A.weight")
            b_OR = tensors.get_tensor(f"{ADAPTER_PREFIX}{path}.lora_B.weight")
            weight_OI = modules[path].weight if path in modules else None
            if weight_OI is None or weight_OI.shape != (b_OR.shape[0], a_RI.shape[1]):
                raise DataError(f"{where}: has an adapter for {path}, which this base has not; use the base that it was "
                                "trained from")  # fmt: skip
            update_OI = (b_OR.float() @ a_RI.float()) * (phase.alpha / phase.rank)
            weight_OI.copy_(weight_OI.float() + update_OI.to(weight_OI.device))


def _name_in_memory(name: str) -> str:
    path, kind, weight = name.removeprefix(ADAPTER_PREFIX).rsplit(".", 2)
    return f"{path}.{kind}.{_ADAPTER_NAME}.{weight}"


def _peft_config(record: PhaseRecord) -> dict[str, Any]:
    """peft's config of a LoRA phase, with nothing in it that differs between equal runs."""
    from peft import LoraConfig

    config = LoraConfig(
        r=record.rank, lora_alpha=record.alpha, target_modules=record.targets, bias="none", inference_mode=True
    ).to_dict()
    # peft keeps targets as a set, whose order changes from process to process.
    return {**config, "target_modules": sorted(config["target_modules"])}
