"""SmolVLM 1 and 2 and Idefics3: one maths, device-exact.

SmolVLM 1 was published under Idefics3's class, SmolVLM 2 under its own. Tiles are those of student/pixels.py; features are
kept between pixel shuffle and connector, where they do not depend on the connector.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from pocketvlm.run_file import Device
from pocketvlm.student import pixels
from pocketvlm.student.families.family import HEAD, Family, Geometry, Sight, Template
from pocketvlm.student.pixels import Grid

if TYPE_CHECKING:
    from torch import Tensor

FAKE, GLOBAL, IMAGE, END = "<fake_token_around_image>", "<global-img>", "<image>", "<end_of_utterance>"
START = "<|im_start|>"
MAX_GRID_SIDE = 6
"""The vocabulary has <row_1_col_1> to <row_6_col_6>."""


@dataclass(frozen=True)
class TileGeometry(Geometry):
    """Square tiles, each through the vision tower on its own."""

    tile_px: int
    patch_px: int
    scale_factor: int

    @property
    def tokens_per_tile(self) -> int:
        """Visual tokens of one tile: patches, less pixel shuffle's scale factor squared."""
        return (self.tile_px // self.patch_px) ** 2 // self.patches_per_token

    @property
    def patches_per_token(self) -> int:
        """Pixel shuffle's scale factor squared."""
        return self.scale_factor**2


@dataclass(frozen=True)
class TileEye:
    """Cuts images as `mtmd_image_preprocessor_idefics3` does."""

    tile_px: int
    longest_edge_px: int

    def look(self, image: Image.Image) -> Sight:
        """In the smallest layout the one tile and the overview hold the same pixels: the tower then runs once per image."""
        tiles_NHWC, grid = pixels.tiles(image, tile_px=self.tile_px, longest_edge_px=self.longest_edge_px)
        return Sight(*pixels.distinct(tiles_NHWC), grid)

    def layout(self, size: tuple[int, int]) -> Grid:
        """Raises ValueError for an image so thin that llama.cpp would scale its short side to nothing."""
        return pixels.grid(*size, tile_px=self.tile_px, longest_edge_px=self.longest_edge_px)


class Idefics3(Family):
    """Idefics3 and what has its maths."""

    prefixes = {  # noqa: RUF012 (a Mapping, never changed)
        "vision": ("model.vision_model.",),
        "connector": ("model.connector.",),
        "text": ("model.text_model.", f"{HEAD}."),
    }
    # Hugging Face's chat layout without the space that llama.cpp's own template would put before the image.
    template = Template(
        start=START, system=f"System: {{system}}{END}\n", turn=f"User:{{image}}{{question}}{END}\nAssistant:", end=END
    )
    image_token = IMAGE
    device_exact = True
    text_architecture = "VLlama3ForCausalLM"
    features_of = ("vision",)

    def __init__(self, name: str, architecture: str) -> None:
        self.name, self.architecture = name, architecture

    def geometry(self, config: Mapping[str, Any]) -> TileGeometry:
        """Sizes of tiles and patches; what a config leaves out has transformers' defaults."""
        vision = config["vision_config"]
        return TileGeometry(
            family=self,
            # The class of the whole model decides, whatever the config of its text model says; both default to False.
            tied_head=config.get("tie_word_embeddings", False),
            tile_px=vision.get("image_size", 512),
            patch_px=vision.get("patch_size", 16),
            scale_factor=config.get("scale_factor", 2),
        )

    def device_problems(self, geometry: TileGeometry, device: Device) -> Iterator[str]:
        """The tile budget must be whole tiles, and no more than the vocabulary has places for."""
        tile, edge = geometry.tile_px, device.longest_edge_px
        if edge % tile or edge // tile > MAX_GRID_SIDE:
            fit = ", ".join(str(tile * n) for n in range(1, MAX_GRID_SIDE + 1))
            yield f"longest_edge_px: {edge} is no tile budget of this student (tiles of {tile} px); use one of {fit}"

    def eye(self, geometry: TileGeometry, device: Device, folder: Path) -> TileEye:
        """Needs no file of the checkpoint."""
        del folder
        return TileEye(geometry.tile_px, device.longest_edge_px)

    def image_tokens(self, geometry: TileGeometry, layout: Grid) -> list[str]:
        """Every tile with its row and column, then the overview."""
        if max(layout.rows, layout.cols) > MAX_GRID_SIDE:
            raise ValueError(
                f"a grid of {layout.rows}x{layout.cols} tiles; the vocabulary ends at {MAX_GRID_SIDE}x{MAX_GRID_SIDE}"
            )
        pads = [IMAGE] * geometry.tokens_per_tile
        tokens: list[str] = []
        for row in range(1, layout.rows + 1):
            for col in range(1, layout.cols + 1):
                tokens += [FAKE, f"<row_{row}_col_{col}>", *pads]
            if row < layout.rows:
                tokens.append("\n")
        return [*tokens, "\n\n", FAKE, GLOBAL, *pads, FAKE]

    def save_processor(self, folder: Path, source: Path, geometry: TileGeometry, device: Device) -> None:
        """Both processor files, saying the device's tile budget."""
        from pocketvlm.student.processor_files import load_tokenizer, save_processor

        save_processor(folder, load_tokenizer(source), tile_px=geometry.tile_px, longest_edge_px=device.longest_edge_px)

    def mmproj_keys(self, geometry: TileGeometry, device: Device) -> dict[str, Any]:
        """Size of a tile, and how many there are."""
        return {
            "clip.projector_type": "idefics3", "clip.vision.image_size": geometry.tile_px,
            "clip.vision.preproc_image_size": device.longest_edge_px,
        }  # fmt: skip

    def features(self, model: Any, tiles: Tensor) -> Tensor:
        """uint8 tiles_NHWC -> features_NTC, after pixel shuffle and before the connector."""
        pixels_NCHW = normalise(tiles).to(next(model.model.vision_model.parameters()).dtype)
        patches_NPC = model.model.vision_model(pixel_values=pixels_NCHW).last_hidden_state
        connector = model.model.connector
        features_NTC: Tensor = connector.pixel_shuffle(patches_NPC, connector.scale_factor)
        return features_NTC

    def text_model(self, model: Any) -> Any:
        """Counts positions by its cache."""
        return model.model.text_model

    def visual_tokens(self, model: Any, features_NTC: Tensor) -> Tensor:
        """Through the connector."""
        visual_NTD: Tensor = model.model.connector.modality_projection(features_NTC)
        return visual_NTD


def normalise(tiles_NHWC: Tensor) -> Tensor:
    """uint8 tiles -> pixels_NCHW in [-1, 1], float32: mean and deviation 0.5, as both runtimes do."""
    return (tiles_NHWC.permute(0, 3, 1, 2).float() / 255.0 - 0.5) / 0.5


SMOLVLM = Idefics3("SmolVLM", "SmolVLMForConditionalGeneration")
IDEFICS3 = Idefics3("Idefics3", "Idefics3ForConditionalGeneration")
