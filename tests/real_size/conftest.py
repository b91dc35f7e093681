"""A student on both sides: by transformers, and converted on the pinned llama-server."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pocketvlm.environment import read_environment
from pocketvlm.errors import UserError
from pocketvlm.llamacpp.server import LlamaServer
from pocketvlm.llamacpp.toolchain import Toolchain, find_toolchain
from pocketvlm.phone import pair_threads
from pocketvlm.run_file import Device, Task
from pocketvlm.stages.evaluation.hf_scoring import HfStudent
from pocketvlm.student.families import MEDIA
from pocketvlm.student.families.idefics3 import SMOLVLM
from pocketvlm.student.tasks import kind_of

CLASSES = ["water", "land", "fire", "wood", "metal"]
TASK = Task(question="Classify this image into one of these elements.\nElement:", classes=dict.fromkeys(CLASSES, ""))
PROMPT, GRAMMAR = kind_of(TASK).prompt(SMOLVLM.template), str(kind_of(TASK).grammar(" "))


@dataclass(frozen=True)
class Compared:
    """One image on both sides."""

    device_tokens: int
    """Prompt tokens as llama-server counts them."""
    tokens: int
    """Prompt tokens in the student's layout."""
    device: dict[int, float]
    """Token id -> log-probability (nats) of each token that the grammar allows first, by llama-server."""
    reference: dict[int, float]
    """The same by transformers."""

    def nats(self, reference: dict[int, float] | None = None) -> float:
        """The largest difference of any token, from what transformers said, or from another reference."""
        other = self.reference if reference is None else reference
        assert self.device.keys() == other.keys()
        return max(abs(self.device[token] - other[token]) for token in other)


@dataclass(frozen=True)
class BothSides:
    """One checkpoint, asked on both sides."""

    student: HfStudent
    server: LlamaServer

    def compare(self, image: Image.Image) -> Compared:
        """An RGB image as the app hands it over: one pass on each side."""
        encoded = self.student.encode([image])
        done = self.server.complete(PROMPT, png(image), grammar=GRAMMAR, max_new_tokens=1, top=100_000)
        assert self.student.allowed is not None
        device = {token: done.steps[0].logprobs[token] for token in self.student.allowed.following(b"")}
        return Compared(done.prompt_tokens, len(encoded[0].prompt_ids), device, self.student.answer(encoded)[0].first_step)

    def reference(self, image: Image.Image) -> dict[int, float]:
        """What transformers says of an image."""
        return self.student.answer(self.student.encode([image]))[0].first_step

    def text_ids(self) -> tuple[list[list[int]], list[list[int]]]:
        """Ids of the prompt before and after the image, by llama-server and by our tokenizer."""
        texts = PROMPT.split(MEDIA)
        ours = [list(self.student.encoder.tokenizer.encode(text, add_special_tokens=False)) for text in texts]
        return [self.server.tokenize(text) for text in texts], ours


def png(image: Image.Image) -> bytes:
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    """Every pixel another colour: what a resize does wrong shows."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.fixture(scope="session", name="noise")
def noise_fixture() -> Callable[..., Image.Image]:
    """`noise(width, height, seed=0)`: an RGB image."""
    return noise


@pytest.fixture(scope="session")
def toolchain() -> Toolchain:
    try:
        return find_toolchain(read_environment())
    except UserError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def both_sides(toolchain: Toolchain) -> Callable[[Path, int], AbstractContextManager[BothSides]]:
    """`with both_sides(checkpoint, longest_edge_px) as sides`: the checkpoint converted and served, and loaded here."""

    @contextmanager
    def open_(checkpoint: Path, longest_edge_px: int) -> Iterator[BothSides]:
        text, mmproj = checkpoint / "text-bf16.gguf", checkpoint / "mmproj-f16.gguf"
        toolchain.convert(checkpoint, text=text, text_type="bf16", mmproj=mmproj, mmproj_type="f16")
        student = HfStudent(checkpoint, TASK, Device(canvas_px=None, longest_edge_px=longest_edge_px))
        threads = pair_threads(text, mmproj, read_environment().thread_count())
        with LlamaServer(toolchain, text, mmproj, media_marker=MEDIA, threads=threads) as server:
            yield BothSides(student, server)

    return open_
