"""The families of small VLMs, one row each: classes, parts, tiles, and how their file is exported. No torch.

A family is named by the class in `architectures` of its config.json.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pocketvlm.errors import UserError
from pocketvlm.run_file import Part, Phase

PARTS: tuple[Part, ...] = ("vision", "connector", "text")
HEAD = "lm_head"
"""Path of the output head, the linear layer before the vocabulary."""


@dataclass(frozen=True)
class Family:
    """What the stages must know of a family."""

    name: str
    architecture: str
    prefixes: Mapping[Part, tuple[str, ...]]
    """Where each part's tensors live in the Hugging Face state dict."""
    text_architecture: str
    """What `text_config.architectures` must say for llama.cpp's converter."""
    device_exact: bool
    """True: student/ builds the very pixels and tokens of the pinned llama.cpp."""
    embeddings: tuple[str, ...] = ("embed_tokens", "position_embedding")
    """Last names of the modules whose weight is a matrix and that are no linear layers."""

    def part_of(self, tensor: str) -> Part:
        """The part that owns a tensor name. Raises KeyError for a name of no part."""
        for part, prefixes in self.prefixes.items():
            if tensor.startswith(prefixes):
                return part
        raise KeyError(f"{tensor} belongs to no part of {self.name}")

    def linear_layers(self, shapes: Mapping[str, Sequence[int]], *, tied_head: bool) -> list[str]:
        """Paths of the linear layers, by the tensors of a checkpoint; a tied head is one and has no tensor there."""
        matrices = [name.removesuffix(".weight") for name, shape in shapes.items()
                    if name.endswith(".weight") and len(shape) == 2]  # fmt: skip
        layers = [path for path in matrices if path.rpartition(".")[2] not in self.embeddings]
        return [*layers, HEAD] if tied_head and HEAD not in layers else layers


_IDEFICS3_PREFIXES: Mapping[Part, tuple[str, ...]] = {
    "vision": ("model.vision_model.",),
    "connector": ("model.connector.",),
    "text": ("model.text_model.", f"{HEAD}."),
}
FAMILIES = {
    family.architecture: family
    for family in (
        # SmolVLM 1 was published under Idefics3's class, SmolVLM 2 under its own; the maths is the same.
        Family("SmolVLM", "SmolVLMForConditionalGeneration", _IDEFICS3_PREFIXES, "VLlama3ForCausalLM", True),
        Family("Idefics3", "Idefics3ForConditionalGeneration", _IDEFICS3_PREFIXES, "VLlama3ForCausalLM", True),
    )
}


def lora_targets(family: Family, layers: Sequence[str], phase: Phase, *, tied_head: bool) -> tuple[list[str], list[str]]:
    """Which of a student's linear layers (paths) a LoRA phase puts adapters on; and what is wrong with its `targets`.

    Without `targets` for a part: all of its layers but the output head, as the QLoRA paper found best. A target is the
    end of a path: `q_proj`, `mlp.fc1`. Problems are a line each, beginning with the key below the phase.
    """
    found: dict[str, None] = {}
    problems: list[str] = []
    for part in phase.train:
        own = [path for path in layers if family.part_of(f"{path}.weight") == part]
        if part not in phase.targets:
            found |= dict.fromkeys(path for path in own if path != HEAD)
        for target in phase.targets.get(part, []):
            named = [path for path in own if f".{path}".endswith(f".{target}")]
            if not named:
                problems.append(f"targets.{part}: the {part} part has no linear layer {target!r}; it has {_last_names(own)}")
            elif tied_head and HEAD in named:
                problems.append(f"targets.{part}: {HEAD} shares its weights with the embeddings of this student, so an "
                                "adapter cannot be merged; remove it")  # fmt: skip
            found |= dict.fromkeys(named)
    return list(found), problems


def _last_names(paths: Iterable[str]) -> str:
    return ", ".join(sorted({path.rpartition(".")[2] for path in paths}))


@dataclass(frozen=True)
class Geometry:
    """What a checkpoint's config.json fixes."""

    family: Family
    tile_px: int
    patch_px: int
    scale_factor: int
    tied_head: bool
    """The output head shares its weights with the token embeddings."""

    @property
    def tokens_per_tile(self) -> int:
        """Visual tokens of one tile: patches, less pixel shuffle's scale factor squared."""
        return (self.tile_px // self.patch_px) ** 2 // self.scale_factor**2


def read_geometry(folder: Path) -> Geometry:
    """From `config.json` of a checkpoint folder. Raises UserError for a family that is not known or not a checkpoint."""
    path = folder / "config.json"
    try:
        config: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path}: is not a checkpoint's config.json ({error}); name a folder in Hugging Face layout"
        ) from error
    return geometry_of(config, str(path))


def geometry_of(config: Mapping[str, Any], where: str) -> Geometry:
    """From a parsed config.json; `where` names it in errors."""
    if "auto_map" in config:
        raise UserError(f"{where}: needs code from the Hub (auto_map), which is never run; use a model of {_known()}")
    architecture = (config.get("architectures") or ["none"])[0]
    family = FAMILIES.get(architecture)
    if family is None:
        raise UserError(f"{where}: the family {architecture} is not available; use a model of {_known()}")
    vision = config["vision_config"]
    return Geometry(
        family=family,
        tile_px=vision.get("image_size", 512),
        patch_px=vision.get("patch_size", 16),
        scale_factor=config.get("scale_factor", 2),
        # The class of the whole model decides, whatever the config of its text model says; both default to False.
        tied_head=config.get("tie_word_embeddings", False),
    )


def _known() -> str:
    return ", ".join(sorted(FAMILIES))
