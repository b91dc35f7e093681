"""What a plan knows of the student: read of its base checkpoint, of whose weights only the headers are fetched."""

from __future__ import annotations

import math
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from pocketvlm.artifacts.store import Store
from pocketvlm.environment import Environment
from pocketvlm.run_file import Recipe
from pocketvlm.student import base
from pocketvlm.student.families import PARTS, Family, Geometry, read_geometry
from pocketvlm.student.prompt import PromptEncoder


@dataclass(frozen=True)
class StudentFacts:
    """What the base checkpoint says about itself."""

    base: base.BaseFacts
    """Its size, its licence, and where it is."""
    geometry: Geometry
    encoder: PromptEncoder
    layout: Any
    """`Layout` of a square image, the largest that the device gives; None where the device block cannot be."""
    tile_bytes: int
    """Pixels of one tile, as the vision tower reads it."""
    device_problems: list[str]
    """As `Family.device_problems`."""

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Tensor name -> shape."""
        return self.base.shapes

    @property
    def positions(self) -> int:
        """Of the text model."""
        return self.base.positions

    @property
    def family(self) -> Family:
        """Of the student."""
        return self.geometry.family

    def parameters(self, parts: tuple[str, ...] = PARTS) -> int:
        """Weights of the parts."""
        return sum(math.prod(shape) for name, shape in self.shapes.items() if self.family.part_of(name) in parts)

    def text_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the text part's tensors."""
        return {name: shape for name, shape in self.shapes.items() if self.family.part_of(name) == "text"}

    def answer_tokens(self, answer: str) -> int:
        """Tokens of an answer, its end included."""
        return len(self.encoder.answer(answer))


def student_facts(recipe: Recipe, folder: Path, environment: Environment, store: Store) -> StudentFacts:
    """Raises UserError for a base or a task that cannot be, HubUnavailable when another try may succeed."""
    base.identity(recipe.student, folder)
    with tempfile.TemporaryDirectory() as scratch:
        checkpoint = base.fetch_base(recipe, folder, Path(scratch), environment, store, weights=False)
        geometry = read_geometry(checkpoint)
        about = base.read_facts(recipe.student, folder, checkpoint, environment, store)
        from pocketvlm.student.processor_files import load_tokenizer

        encoder = PromptEncoder(load_tokenizer(checkpoint), geometry, recipe.task)
        problems = list(geometry.family.device_problems(geometry, recipe.device))
        side = recipe.device.canvas_px or recipe.device.longest_edge_px
        layout, tile_bytes = None, 0
        if not problems:
            sight = geometry.family.eye(geometry, recipe.device, checkpoint).look(Image.new("RGB", (side, side)))
            layout, tile_bytes = sight.layout, sight.tiles[0].nbytes
    return StudentFacts(about, geometry, encoder, layout, tile_bytes, problems)
