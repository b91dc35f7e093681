"""The families, a row each, and those that train nowhere here. A family is named by the class in its config.json."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pocketvlm.errors import UserError
from pocketvlm.student.families.family import Family, Geometry
from pocketvlm.student.families.idefics3 import IDEFICS3, SMOLVLM
from pocketvlm.student.families.lfm2_vl import LFM2_VL
from pocketvlm.student.families.qwen_vl import QWEN2_5_VL, QWEN2_VL, QWEN3_5, QWEN3_VL

FAMILIES: dict[str, Family] = {
    family.architecture: family for family in (
        SMOLVLM, IDEFICS3,
        LFM2_VL,
        QWEN2_VL, QWEN2_5_VL, QWEN3_VL, QWEN3_5,
    )
}  # fmt: skip
REFUSED = {
    "Phi3VForCausalLM": "llama.cpp's converter has no entry for Phi-3.5-vision (its pull requests 7705, 9209 and 17687 were "
                        "never merged), so that no GGUF of it can be made",
    "Gemma3nForConditionalGeneration": "llama.cpp exports Gemma 3n, but transformers runs its vision tower (MobileNetV5) through "
                                       "timm and torchvision alone, which this project does not carry",
}  # fmt: skip
"""Architecture -> why it cannot be trained or shipped."""


def read_geometry(folder: Path) -> Any:
    """From `config.json` of a checkpoint folder. Raises UserError for a family that is not known or not a checkpoint."""
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text())
        if not isinstance(config, dict):
            raise ValueError("no JSON object")
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path}: is not a checkpoint's config.json ({error}); name a folder in Hugging Face layout"
        ) from error
    return geometry_of(config, str(path))


def geometry_of(config: Mapping[str, Any], where: str) -> Any:
    """From a parsed config.json; `where` names it in errors. A `Geometry` of the family's own kind. Raises UserError."""
    names = config.get("architectures")
    architecture = str(names[0]) if isinstance(names, list) and names else "none"
    if architecture in REFUSED:
        raise UserError(f"{where}: {architecture} cannot be trained here: {REFUSED[architecture]}; use a model of {_known()}")
    if "auto_map" in config:
        raise UserError(f"{where}: needs code from the Hub (auto_map), which is never run; use a model of {_known()}")
    family = FAMILIES.get(architecture)
    if family is None:
        raise UserError(f"{where}: the family {architecture} is not available; use a model of {_known()}")
    if not isinstance(config.get("vision_config"), dict):
        raise UserError(f"{where}: has no vision_config, as {family.name} has; use the published one")
    geometry: Geometry = family.geometry(config)
    return geometry


def _known() -> str:
    return ", ".join(sorted(FAMILIES))
