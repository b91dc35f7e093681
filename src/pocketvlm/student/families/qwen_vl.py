"""Qwen2-VL, Qwen2.5-VL, Qwen3-VL and Qwen3.5: one square image, one block of tokens, positions in three directions.

Not device-exact: the family's own processor makes the numbers that the vision tower reads, and how far the phone is from it is
measured. But the app's canvas is of a size that neither side resizes, so that both read the same pixels, and every image
has the same tokens. Features are kept after the merger; those that Qwen3-VL adds to its first text layers (deepstack) lie
behind them, along the width.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from pocketvlm.errors import UserError
from pocketvlm.run_file import Device
from pocketvlm.student.families.canvas import CanvasFamily, CanvasLayout, PatchGeometry, one_tile
from pocketvlm.student.families.family import HEAD, Sight, Template, place_features

if TYPE_CHECKING:
    from torch import Tensor

MERGE = 2
"""Patches of a token in each direction; clip.cpp and qwen2vl.cpp of the pin have it in their loops."""
IMAGE, END = "<|image_pad|>", "<|im_end|>"
TURN = "<|im_start|>user\n{image}{question}<|im_end|>\n<|im_start|>assistant\n"
SYSTEM = "<|im_start|>system\n{system}<|im_end|>\n"
HELPFUL = SYSTEM.format(system="You are a helpful assistant.")
"""What the chat template of Qwen2-VL and Qwen2.5-VL puts where there are no instructions."""


@dataclass(frozen=True)
class TowerGeometry(PatchGeometry):
    """MERGE x MERGE patches a token."""

    blocks: int
    """Layers of the vision tower."""


@dataclass(frozen=True)
class PatchEye:
    """Cuts a canvas into patches with the checkpoint's own processor, which resizes nothing."""

    processor: Any
    canvas_px: int
    token_px: int

    def look(self, image: Image.Image) -> Sight:
        """Tiles are patches_1PC, float32, in the order in which the tower merges them. Raises ValueError as `layout`."""
        layout = self.layout(image.size)
        patches_PC = self.processor(images=image, do_resize=False, return_tensors="np")["pixel_values"]
        return one_tile(patches_PC[None], layout)

    def layout(self, size: tuple[int, int]) -> CanvasLayout:
        """Raises ValueError for an image that is not the device's canvas."""
        if size != (self.canvas_px, self.canvas_px):
            raise ValueError(f"an image of {size[0]}x{size[1]} is no canvas of {self.canvas_px} px")
        return CanvasLayout(*[self.canvas_px // self.token_px] * 2)


class QwenVL(CanvasFamily):
    """Qwen2-VL and what has its positions."""

    prefixes = {  # noqa: RUF012 (a Mapping, never changed)
        # Checkpoints of 2 and 2.5 have the older names on disk: `visual.` and `model.` alone.
        "vision": ("model.visual.", "visual."),
        "connector": tuple(f"{at}visual.{name}." for at in ("model.", "") for name in ("merger", "deepstack_merger_list")),
        # `mtp.`: Qwen3.5's draft of more tokens at once. transformers leaves it on disk, and it is not shipped.
        "text": ("model.", "mtp.", f"{HEAD}."),
    }
    image_token = IMAGE
    embeddings = ("embed_tokens", "pos_embed")
    least_tokens, most_tokens = 8, 4096

    def __init__(
        self, name: str, architecture: str, *, plain: str, projector: str, patch_px: int, blocks: int,
        turn: str = TURN, fixed: Mapping[str, Any] | None = None,
    ) -> None:  # fmt: skip
        """`plain`, `turn`: of the template. `patch_px`, `blocks`: transformers' defaults of what a config leaves out.

        `fixed`: numbers of the config, by path, that llama.cpp has in its code or takes from another key.
        """
        self.name, self.architecture = name, architecture
        self.template = Template(plain=plain, system=SYSTEM, turn=turn, end=END)
        self._projector, self._patch_px, self._blocks = projector, patch_px, blocks
        self._fixed = {"vision_config.spatial_merge_size": MERGE, "vision_config.temporal_patch_size": 2, **(fixed or {})}

    def geometry(self, config: Mapping[str, Any]) -> TowerGeometry:
        """Raises UserError for a number that llama.cpp does not read from the checkpoint and has otherwise."""
        for path, value in self._fixed.items():
            block, _, key = path.rpartition(".")
            found = config.get(block, {}).get(key, value)
            if found != value:
                raise UserError(f"config.json: {path} is {found}, and llama.cpp takes {value} for {self.name} whatever it says; "
                                "use a model that has it")  # fmt: skip
        vision, text = config["vision_config"], config.get("text_config", {})
        return TowerGeometry(
            family=self,
            tied_head=config.get("tie_word_embeddings", False) or text.get("tie_word_embeddings", False),
            patch_px=vision.get("patch_size", self._patch_px),
            merge=MERGE,
            blocks=vision.get("depth", self._blocks),
        )

    def eye(self, geometry: TowerGeometry, device: Device, folder: Path) -> PatchEye:
        """Raises UserError when the checkpoint's processor is missing or cuts other patches."""
        assert device.canvas_px is not None, "device_problems asks for one"
        return PatchEye(_processor(folder, geometry), device.canvas_px, geometry.token_px)

    def image_tokens(self, geometry: TowerGeometry, layout: CanvasLayout) -> list[str]:
        """As mtmd puts them: a token before, one after."""
        return ["<|vision_start|>", *[IMAGE] * layout.tokens, "<|vision_end|>"]

    def save_processor(self, folder: Path, source: Path, geometry: TowerGeometry, device: Device) -> None:
        """The checkpoint's files, but the limits of an image's area, in both processor files, leave the canvas alone."""
        from pocketvlm.student.processor_files import write_json

        assert device.canvas_px is not None, "device_problems asks for one"
        super().save_processor(folder, source, geometry, device)
        settings = _processor(source, geometry).to_dict()
        area, size = device.canvas_px**2, settings["size"]
        settings["size"] = {"shortest_edge": min(area, size["shortest_edge"]), "longest_edge": max(area, size["longest_edge"])}
        settings["image_processor_type"] = "Qwen2VLImageProcessor"
        write_json(folder / "preprocessor_config.json", settings)
        kind = self.architecture.replace("ForConditionalGeneration", "Processor")
        write_json(folder / "processor_config.json", {"processor_class": kind, "image_processor": settings})

    def mmproj_keys(self, geometry: TowerGeometry, device: Device) -> dict[str, Any]:
        """What decides how the tower reads patches."""
        return {
            "clip.projector_type": self._projector, "clip.vision.patch_size": geometry.patch_px,
            "clip.vision.block_count": geometry.blocks,
        }  # fmt: skip

    def features(self, model: Any, tiles: Tensor) -> Tensor:
        """patches_NPC -> features_NTC: after the merger, deepstack's behind them along C."""
        import torch

        tower = model.model.visual
        side = math.isqrt(tiles.shape[1])
        grid_N3 = torch.tensor([[1, side, side]] * len(tiles), device=tiles.device)
        dtype = next(tower.parameters()).dtype
        output = tower(tiles.flatten(0, 1).to(dtype), grid_thw=grid_N3, return_dict=True)
        layers = [output.pooler_output, *(getattr(output, "deepstack_features", None) or [])]
        features_RC = torch.cat(layers, dim=-1)
        return features_RC.view(len(tiles), -1, features_RC.shape[-1])

    def text_model(self, model: Any) -> Any:
        """Is told its positions."""
        return model.model.language_model

    def prefill(self, model: Any, ids_BS: Tensor, features_NTC: Tensor, cache: Any = None) -> tuple[Tensor, int]:
        """Features in the place of the image's tokens; in the text, an image is as many positions as its side has tokens."""
        import torch

        image_id = model.config.image_token_id
        embeddings_BSD = self.text_model(model).embed_tokens(ids_BS)
        visual_NTD, *deeper = torch.split(features_NTC, embeddings_BSD.shape[-1], dim=-1)
        embeddings_BSD = place_features(embeddings_BSD, ids_BS, visual_NTD, image_id)
        positions_3BS = image_positions(ids_BS == image_id, visual_NTD.shape[1])
        more = {}
        if deeper:
            more = {"visual_pos_masks": ids_BS == image_id, "deepstack_visual_embeds": [layer.flatten(0, 1) for layer in deeper]}
        hidden_BSD = self._hidden(model, embeddings_BSD, cache, position_ids=positions_3BS, **more)
        return hidden_BSD, ids_BS.shape[1] - visual_NTD.shape[1] + math.isqrt(visual_NTD.shape[1])

    def step(self, model: Any, ids_B1: Tensor, position: int, cache: Any) -> tuple[Tensor, int]:
        """The same position in all three directions."""
        embeddings_B1D = self.text_model(model).embed_tokens(ids_B1)
        positions_3B1 = ids_B1.new_full((3, *ids_B1.shape), position)
        return self._hidden(model, embeddings_B1D, cache, position_ids=positions_3B1), position + 1


def image_positions(image_BS: Tensor, tokens: int) -> Tensor:
    """positions_3BS (time, height, width) of samples with one square image of `tokens` tokens, in one piece, where image_BS is.

    Text counts on in all three; the image stands still in time and counts its rows and columns from there.
    """
    import torch

    side = math.isqrt(tokens)
    place_BS = torch.arange(image_BS.shape[1], device=image_BS.device).expand_as(image_BS)
    first_B1 = image_BS.int().argmax(dim=1, keepdim=True)
    number_BS = place_BS - first_B1
    text_BS = torch.where(number_BS < 0, place_BS, place_BS - tokens + side)
    ways = (torch.zeros_like(number_BS), number_BS // side, number_BS % side)
    return torch.stack([torch.where(image_BS, first_B1 + way_BS, text_BS) for way_BS in ways])


def _processor(folder: Path, geometry: TowerGeometry) -> Any:
    """The checkpoint's image processor, by Pillow and NumPy."""
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    try:
        processor = Qwen2VLImageProcessorPil.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as error:
        raise UserError(f"{folder}: has no preprocessor_config.json that can be read ({error}); add the published one") from error
    wanted = {"patch_size": geometry.patch_px, "merge_size": MERGE, "temporal_patch_size": 2}
    found = {key: getattr(processor, key) for key in wanted}
    wrong = [f"{key} is {found[key]}, not {value}" for key, value in wanted.items() if found[key] != value]
    if wrong:
        raise UserError(f"{folder}: preprocessor_config.json does not fit config.json: {'; '.join(wrong)}; add the published one")
    return processor


_OLDER: dict[str, Any] = {"plain": HELPFUL, "patch_px": 14, "blocks": 32}
_NEWER: dict[str, Any] = {
    "plain": "", "projector": "qwen3vl_merger", "patch_px": 16, "blocks": 27,
    # The converter writes it as the tower's too, which has 1e-6 in its code.
    "fixed": {"text_config.rms_norm_eps": 1e-6},
}  # fmt: skip
QWEN2_VL = QwenVL("Qwen2-VL", "Qwen2VLForConditionalGeneration", projector="qwen2vl_merger", **_OLDER)
QWEN2_5_VL = QwenVL(
    "Qwen2.5-VL", "Qwen2_5_VLForConditionalGeneration", projector="qwen2.5vl_merger", fixed={"vision_config.window_size": 112},
    **_OLDER,
)  # fmt: skip
QWEN3_VL = QwenVL("Qwen3-VL", "Qwen3VLForConditionalGeneration", **_NEWER)
# Its template opens and closes an empty thought where thinking is off, as it is for its small models.
QWEN3_5 = QwenVL("Qwen3.5", "Qwen3_5ForConditionalGeneration", turn=f"{TURN}<think>\n\n</think>\n\n", **_NEWER)
