"""What families share whose images are one square canvas: the same number of tokens for every image, nothing resized."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pocketvlm.run_file import Device
from pocketvlm.student.families.family import Family, Geometry, Sight
from pocketvlm.student.pixels import Tiles

PROCESSOR_FILES = (
    "tokenizer.json", "tokenizer_config.json", "tokenizer.model", "special_tokens_map.json", "added_tokens.json", "vocab.json",
    "merges.txt", "chat_template.jinja", "chat_template.json", "preprocessor_config.json", "processor_config.json",
    "video_preprocessor_config.json", "generation_config.json",
)  # fmt: skip
"""What stands beside the weights of a published checkpoint, as far as it has them."""


@dataclass(frozen=True)
class PatchGeometry(Geometry):
    """Square patches, of which `merge` x `merge` become one token."""

    patch_px: int
    merge: int

    @property
    def token_px(self) -> int:
        """Side of what one visual token shows."""
        return self.patch_px * self.merge

    @property
    def patches_per_token(self) -> int:
        """Patches of a token."""
        return self.merge**2


@dataclass(frozen=True)
class CanvasLayout:
    """One image of `cols` x `rows` tokens."""

    cols: int
    rows: int
    tiles: int = 1

    @property
    def tokens(self) -> int:
        """Visual tokens of the image."""
        return self.rows * self.cols

    @property
    def words(self) -> str:
        """For a person."""
        return f"{self.cols}x{self.rows} of them, one canvas"


def one_tile(tile: Tiles, layout: CanvasLayout) -> Sight:
    """A sight of a single tile, (1, ...)."""
    return Sight(tile, [0], layout)


class CanvasFamily(Family):
    """A family that goes through its own processor, on a canvas that leaves it nothing to resize."""

    tokens_key = "canvas_px"
    least_tokens: int
    most_tokens: int
    """Of an image. Below and beyond, llama.cpp resizes or tiles it (clip.cpp: set_limit_image_tokens)."""

    def device_problems(self, geometry: PatchGeometry, device: Device) -> Iterator[str]:
        """The canvas must be whole tokens, as many as llama.cpp leaves alone; and no other key says how an image is cut."""
        fit = [n * geometry.token_px for n in range(1, self.most_tokens) if self.least_tokens <= n * n <= self.most_tokens]
        sizes = ", ".join(map(str, fit[:8])) + (f" ... {fit[-1]}" if len(fit) > 8 else "")
        if device.canvas_px not in fit:
            given = "null" if device.canvas_px is None else device.canvas_px
            yield (f"canvas_px: {given} is no canvas that llama.cpp leaves as it is for {self.name}, so that pixels "
                   f"or tokens would differ from the phone's; use one of {sizes}")  # fmt: skip
        if "longest_edge_px" in device.model_fields_set:
            yield f"longest_edge_px: {self.name} has no tile budget, the canvas alone decides; remove it"

    def save_processor(self, folder: Path, source: Path, geometry: Any, device: Device) -> None:
        """The files of the base checkpoint, as they are: on its canvas nothing of them depends on the device."""
        del geometry, device
        for name in PROCESSOR_FILES:
            if (source / name).is_file():
                shutil.copyfile(source / name, folder / name)
