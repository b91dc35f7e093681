"""LFM2-VL (450M and larger): a SigLIP2 tower of any patch grid, and a text model of short convolutions and attention.

llama.cpp leaves an image as it is when its sides are multiples of a patch's token (32 px) and its tokens lie between 64 and
256 (`set_limit_image_tokens` for PROJECTOR_TYPE_LFM2 in tools/mtmd/clip.cpp of the pin); else it resizes or tiles. So the canvas
is chosen such that nothing is resized, and every image is one tile without a thumbnail.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from pocketvlm.run_file import Device
from pocketvlm.student.families.canvas import CanvasFamily, CanvasLayout, PatchGeometry, one_tile
from pocketvlm.student.families.family import HEAD, Sight, Template

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class PatchEye:
    """Cuts a square canvas into patches, row by row, channels last; numbers in [-1, 1]."""

    geometry: PatchGeometry

    def look(self, image: Image.Image) -> Sight:
        """One tile of shape (patches, 3 x patch_px x patch_px), float32."""
        patch = self.geometry.patch_px
        pixels_HWC = (np.asarray(image, np.float32) / 255 - 0.5) / 0.5
        rows, cols = pixels_HWC.shape[0] // patch, pixels_HWC.shape[1] // patch
        patches = pixels_HWC.reshape(rows, patch, cols, patch, 3).swapaxes(1, 2).reshape(1, rows * cols, -1)
        return one_tile(np.ascontiguousarray(patches), self.layout(image.size))

    def layout(self, size: tuple[int, int]) -> CanvasLayout:
        """Of a canvas without problems."""
        return CanvasLayout(size[0] // self.geometry.token_px, size[1] // self.geometry.token_px)


class Lfm2Vl(CanvasFamily):
    """LFM2-VL."""

    name = "LFM2-VL"
    architecture = "Lfm2VlForConditionalGeneration"
    prefixes = {  # noqa: RUF012 (a Mapping, never changed)
        "vision": ("model.vision_tower.",),
        "connector": ("model.multi_modal_projector.",),
        "text": ("model.language_model.", f"{HEAD}."),
    }
    template = Template(
        system="<|im_start|>system\n{system}<|im_end|>\n",
        turn="<|im_start|>user\n{image}{question}<|im_end|>\n<|im_start|>assistant\n",
        end="<|im_end|>",
        bos="<|startoftext|>",
    )
    image_token = "<image>"
    least_tokens, most_tokens = 64, 256

    def geometry(self, config: Mapping[str, Any]) -> PatchGeometry:
        """Size of a patch and how many make a token."""
        return PatchGeometry(
            family=self, tied_head=config.get("tie_embedding", config.get("tie_word_embeddings", True)),
            patch_px=config["vision_config"].get("patch_size", 16), merge=config.get("downsample_factor", 2),
        )  # fmt: skip

    def eye(self, geometry: PatchGeometry, device: Device, folder: Path) -> PatchEye:
        """Needs no file of the checkpoint: nothing is resized."""
        del device, folder
        return PatchEye(geometry)

    def image_tokens(self, geometry: PatchGeometry, layout: CanvasLayout) -> list[str]:
        """Between two markers."""
        return ["<|image_start|>", *[self.image_token] * layout.tokens, "<|image_end|>"]

    def mmproj_keys(self, geometry: PatchGeometry, device: Device) -> dict[str, Any]:
        """Size of patches and of tokens."""
        return {
            "clip.projector_type": "lfm2", "clip.vision.patch_size": geometry.patch_px,
            "clip.vision.projector.scale_factor": geometry.merge,
        }  # fmt: skip

    def features(self, model: Any, tiles: Tensor) -> Tensor:
        """tiles (N, patches, 3 x patch_px x patch_px) -> features_NTD, after the connector."""
        side = round(tiles.shape[1] ** 0.5)
        seen = model.model.vision_tower(
            pixel_values=tiles,
            spatial_shapes=tiles.new_full((len(tiles), 2), side).long(),
            pixel_attention_mask=tiles.new_ones((len(tiles), tiles.shape[1])).long(),
        )
        visual: Tensor = model.model.multi_modal_projector(seen.last_hidden_state.unflatten(1, (side, side)))
        return visual.flatten(1, 2)

    def text_model(self, model: Any) -> Any:
        """Counts positions by its cache."""
        return model.model.language_model


LFM2_VL = Lfm2Vl()
