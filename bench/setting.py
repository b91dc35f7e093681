"""What both sides of every comparison are given: weights, images, question, threads and precision."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from pocketvlm.artifacts.dataset import Row, write_split
from pocketvlm.run_file import Device, Phase, Task, Trainer
from pocketvlm.stages.training.learner import Precision, choose_precision
from pocketvlm.student import pixels, published, tiny
from pocketvlm.student.families import Eye, read_geometry
from pocketvlm.student.processor_files import load_tokenizer
from pocketvlm.student.prompt import PromptEncoder

CLASSES = ("water", "land", "fire", "wood", "metal")
QUESTION = "Classify this image into one of these elements: water, land, fire, wood, metal.\nElement:"
CANVAS_PX = 256
DEFAULT_BUDGET_TILES = 4
"""The default processor scales every image to 4x4 tiles and an overview."""


@dataclass(frozen=True)
class Setting:
    """One benchmark's place and sizes. `images` are trained on in each epoch."""

    folder: Path
    quick: bool
    images: int
    batch_size: int
    rounds: int
    newcomer_steps: int
    """Of one sample each; the first is not counted."""
    scored_images: int
    size: str = "256M"
    """Of the published students."""
    device: str = "cpu"

    @cached_property
    def checkpoint(self) -> Path:
        """The student, saved with a tile budget of one tile."""
        folder = self.folder / "student"
        if self.quick:
            return tiny.build_tiny(folder, seed=0, longest_edge_px=tiny.TILE_PX)
        return published.build_published(folder, size=self.size, seed=0, longest_edge_px=published.TILE_PX)

    @cached_property
    def geometry(self) -> Any:
        """Family and sizes of the checkpoint."""
        return read_geometry(self.checkpoint)

    @cached_property
    def eye(self) -> Eye:
        """One tile and the overview."""
        device = Device(canvas_px=CANVAS_PX, longest_edge_px=self.geometry.tile_px)
        eye: Eye = self.geometry.family.eye(self.geometry, device, self.checkpoint)
        return eye

    @cached_property
    def task(self) -> Task:
        """The question and the classes."""
        return Task(question=QUESTION, classes=dict.fromkeys(CLASSES, ""))

    @cached_property
    def encoder(self) -> PromptEncoder:
        """Our prompt."""
        return PromptEncoder(load_tokenizer(self.checkpoint), self.geometry, self.task)

    @cached_property
    def pictures(self) -> list[Image.Image]:
        """RGB images on the device's canvas, as the dataset holds them."""
        rng = np.random.default_rng(0)
        count = max(self.images, self.scored_images)
        blocks = [Image.fromarray(rng.integers(0, 256, (24, 32, 3), dtype=np.uint8)) for _ in range(count)]
        return [pixels.letterbox(block.resize((640, 480), Image.Resampling.BICUBIC), CANVAS_PX) for block in blocks]

    def label(self, number: int) -> str:
        """The class of an image."""
        return CLASSES[number % len(CLASSES)]

    @cached_property
    def dataset(self) -> Path:
        """A dataset artifact's folder with the pictures as its train split."""
        folder = self.folder / "dataset"
        folder.mkdir()
        rows = [
            Row(label=self.label(i), answer=self.label(i), question=QUESTION, sha256=f"{i:064x}", phash="0" * 16, source="bench",
                source_id=str(i))
            for i in range(self.images)
        ]  # fmt: skip
        pngs = list(self._pngs())
        write_split(folder, "train", rows, [len(png) for png in pngs], iter(pngs), CLASSES)
        return folder

    def _pngs(self) -> Iterator[bytes]:
        for image in self.pictures[: self.images]:
            out = io.BytesIO()
            image.save(out, "PNG")
            yield out.getvalue()

    @cached_property
    def precision(self) -> Precision:
        """bf16 where the device computes it natively, on both sides."""
        return choose_precision("auto", torch.device(self.device))

    @property
    def dtype(self) -> torch.dtype:
        """Of the frozen weights, on both sides."""
        return torch.bfloat16 if self.precision == "bf16" else torch.float32

    @cached_property
    def trainer(self) -> Trainer:
        """LoRA on all linear layers of the text model, three epochs."""
        phase = Phase(method="lora", train=["text"], epochs=3, rank=16, alpha=32, learning_rate=2e-4)
        return Trainer(phases=[phase], batch_size=self.batch_size)
