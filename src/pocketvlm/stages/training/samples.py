"""A split of the dataset as tensors: every image decoded and cut once, every answer tokenised once.

A sample is a question to an image and its answer: the shipped one, and in training the image's variants. All samples of an
image look at the same tiles.

Shapes: M samples, N different tiles of all images, S longest sequence, H and W pixels; see student/forward.py.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from pocketvlm.artifacts.dataset import Example, read_split
from pocketvlm.errors import DataError
from pocketvlm.stages.training.spool import Spool
from pocketvlm.student import pixels, prompt
from pocketvlm.student.forward import distinct_tiles
from pocketvlm.student.scoring import Layout

CHUNK = 128
"""Images in flight while decoding: 100 MB at 512 px."""


@dataclass(frozen=True)
class Samples:
    """One split: images in file order, the samples of each together, the shipped question first."""

    ids_MS: Tensor
    labels_MS: Tensor
    lengths: list[int]
    """Tokens of each sample."""
    prompt_lengths: list[int]
    """Of them, those before the answer."""
    images: list[int]
    """Number of each sample's image."""
    tiles_NHWC: Tensor
    """uint8; the different tiles of each image, image after image."""
    first: list[int]
    """Place of each image's first tile in tiles_NHWC; one more for the end."""
    places: list[list[int]]
    """For each tile of an image's layout, its place among the image's different tiles."""
    labels: list[str]
    """Class name of each image."""

    def __len__(self) -> int:
        return len(self.lengths)

    def prompt(self, sample: int) -> list[int]:
        """Ids of a sample's prompt, without the answer."""
        ids: list[int] = self.ids_MS[sample, : self.prompt_lengths[sample]].tolist()
        return ids

    def images_of(self, samples: Sequence[int]) -> list[int]:
        """The images of some samples in order, each once."""
        return list(dict.fromkeys(self.images[sample] for sample in samples))

    def tile_rows(self, samples: Sequence[int]) -> tuple[list[int], list[int]]:
        """Rows in tiles_NHWC of the different tiles of `images_of`, and for each tile of the samples' layouts its place there."""
        rows: list[int] = []
        start: dict[int, int] = {}
        for image in self.images_of(samples):
            start[image] = len(rows)
            rows += range(self.first[image], self.first[image + 1])
        of_samples = (self.images[sample] for sample in samples)
        return rows, [start[image] + place for image in of_samples for place in self.places[image]]


def read_samples(
    dataset: Path,
    split: str,
    encoder: prompt.PromptEncoder,
    layout: Layout,
    *,
    spool: Spool,
    threads: int,
    check: Callable[[], None],
) -> Samples:
    """Decodes and cuts a split on `threads` threads; `check` is called between chunks and may raise.

    Raises DataError for an empty split.
    """

    def prepare(example: Example) -> tuple[pixels.Pixels, list[int], list[prompt.Sample]]:
        with Image.open(io.BytesIO(example.image_png)) as image:
            tiles, grid = pixels.tiles(
                image.convert("RGB"), tile_px=layout.tile_px, longest_edge_px=layout.longest_edge_px
            )
        return *distinct_tiles(tiles), list(_encode(example, encoder, grid))

    samples: list[prompt.Sample] = []
    images: list[int] = []
    labels: list[str] = []
    first, all_places = [0], []
    with ThreadPoolExecutor(threads) as pool:
        for chunk in _chunks(read_split(dataset, split)):
            for example, (tiles_NHWC, places, own) in zip(chunk, pool.map(prepare, chunk), strict=True):
                spool.append(torch.from_numpy(tiles_NHWC))
                first.append(first[-1] + len(tiles_NHWC))
                all_places.append(places)
                images += [len(labels)] * len(own)
                samples += own
                labels.append(example.label)
            check()
    if not samples:
        raise DataError(f"the {split} split is empty; give it a larger share in run.labeller.split, or more images")
    ids, targets = prompt.pad(samples, encoder.end_id)
    return Samples(torch.tensor(ids), torch.tensor(targets), [len(sample.ids) for sample in samples],
                   [sample.prompt_length for sample in samples], images, spool.finish(), first, all_places, labels)  # fmt: skip


def _encode(example: Example, encoder: prompt.PromptEncoder, grid: pixels.Grid) -> Iterator[prompt.Sample]:
    """The shipped question with the plain answer, then the variants. Nothing else of a row is ever text of a sample."""
    yield encoder.sample(grid, prompt.answer_text(example.answer))
    for question, answer in example.variants:
        yield encoder.sample(grid, prompt.answer_text(answer), prompt.prompt_of(question))


def _chunks(examples: Iterator[Example]) -> Iterator[list[Example]]:
    while chunk := list(islice(examples, CHUNK)):
        yield chunk
