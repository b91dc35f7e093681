"""A split of the dataset as tensors: every image decoded and cut once, every answer tokenised once.

Shapes: M samples, N different tiles of all samples, S longest sequence, H and W pixels; see student/forward.py.
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
    """One split, in file order."""

    ids_MS: Tensor
    labels_MS: Tensor
    lengths: list[int]
    """Tokens of each sample."""
    prompts: list[list[int]]
    """Ids of each sample's prompt, without the answer."""
    tiles_NHWC: Tensor
    """uint8; the different tiles of each image, image after image."""
    first: list[int]
    """Place of each sample's first tile in tiles_NHWC; one more for the end."""
    places: list[list[int]]
    """For each tile of a sample's layout, its place among the sample's different tiles."""
    labels: list[str]
    """Class names."""

    def __len__(self) -> int:
        return len(self.lengths)

    def tile_rows(self, samples: Sequence[int]) -> tuple[list[int], list[int]]:
        """Rows in tiles_NHWC of the samples' different tiles, and for each tile of their layouts its place in those."""
        rows: list[int] = []
        layout: list[int] = []
        for sample in samples:
            layout += [len(rows) + place for place in self.places[sample]]
            rows += range(self.first[sample], self.first[sample + 1])
        return rows, layout


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

    def prepare(example: Example) -> tuple[pixels.Pixels, list[int], prompt.Sample, list[int], str]:
        with Image.open(io.BytesIO(example.image_png)) as image:
            tiles, grid = pixels.tiles(
                image.convert("RGB"), tile_px=layout.tile_px, longest_edge_px=layout.longest_edge_px
            )
        kept, places = distinct_tiles(tiles)
        sample = encoder.sample(grid, prompt.answer_text(example.answer))
        return kept, places, sample, encoder.prompt(grid), example.label

    samples: list[prompt.Sample] = []
    prompts: list[list[int]] = []
    first, all_places, labels = [0], [], []
    with ThreadPoolExecutor(threads) as pool:
        for chunk in _chunks(read_split(dataset, split)):
            for tiles_NHWC, places, sample, prompt_ids, label in pool.map(prepare, chunk):
                spool.append(torch.from_numpy(tiles_NHWC))
                first.append(first[-1] + len(tiles_NHWC))
                all_places.append(places)
                samples.append(sample)
                prompts.append(prompt_ids)
                labels.append(label)
            check()
    if not samples:
        raise DataError(f"the {split} split is empty; give it a larger share in run.labeller.split, or more images")
    ids, targets = prompt.pad(samples, encoder.end_id)
    return Samples(torch.tensor(ids), torch.tensor(targets), [len(sample.ids) for sample in samples], prompts,
                   spool.finish(), first, all_places, labels)  # fmt: skip


def _chunks(examples: Iterator[Example]) -> Iterator[list[Example]]:
    while chunk := list(islice(examples, CHUNK)):
        yield chunk
