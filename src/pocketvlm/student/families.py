"""The families of small VLMs, one row each: classes, parts, tiles, and how their file is exported. No torch.

A family is named by the class in `architectures` of its config.json.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pocketvlm.errors import UserError
from pocketvlm.run_file import Part

PARTS: tuple[Part, ...] = ("vision", "connector", "text")


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

    def part_of(self, tensor: str) -> Part:
        """The part that owns a tensor name. Raises KeyError for a name of no part."""
        for part, prefixes in self.prefixes.items():
            if tensor.startswith(prefixes):
                return part
        raise KeyError(f"{tensor} belongs to no part of {self.name}")


_IDEFICS3_PREFIXES: Mapping[Part, tuple[str, ...]] = {
    "vision": ("model.vision_model.",),
    "connector": ("model.connector.",),
    "text": ("model.text_model.", "lm_head."),
}
FAMILIES = {
    family.architecture: family
    for family in (
        # SmolVLM 1 was published under Idefics3's class, SmolVLM 2 under its own; the maths is the same.
        Family("SmolVLM", "SmolVLMForConditionalGeneration", _IDEFICS3_PREFIXES, "VLlama3ForCausalLM", True),
        Family("Idefics3", "Idefics3ForConditionalGeneration", _IDEFICS3_PREFIXES, "VLlama3ForCausalLM", True),
    )
}


@dataclass(frozen=True)
class Geometry:
    """Sizes that a checkpoint's config.json fixes."""

    family: Family
    tile_px: int
    patch_px: int
    scale_factor: int
    vision_width: int
    text_width: int
    vocabulary: int

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
    vision, text = config["vision_config"], config["text_config"]
    return Geometry(
        family=family,
        tile_px=vision.get("image_size", 512),
        patch_px=vision.get("patch_size", 16),
        scale_factor=config.get("scale_factor", 2),
        vision_width=vision.get("hidden_size", 768),
        text_width=text["hidden_size"],
        vocabulary=text.get("vocab_size", config.get("vocab_size", 49280)),
    )


def _known() -> str:
    return ", ".join(sorted(FAMILIES))
