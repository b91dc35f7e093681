"""A split of the dataset as tensors: every image decoded and cut once, every answer tokenised once.

A sample is a question to an image and its answer: the shipped one, and in training the image's variants. All samples of an
image look at the same tiles. Where training images are augmented, each has several looks (stages/training/augment.py), and a
sample has a number for each: with M samples, number n is sample n % M in look n // M.

Shapes: M samples, N different tiles of all looks (of the family's own shape and dtype, as `Sight` has them), S longest
sequence; see student/forward.py.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Hashable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from pocketvlm.artifacts.dataset import SPLITS, Example, read_rows, read_split
from pocketvlm.errors import DataError, UserError
from pocketvlm.run_file import Augment
from pocketvlm.stages.training.augment import look
from pocketvlm.stages.training.spool import Spool
from pocketvlm.student import prompt
from pocketvlm.student.families import Eye, Sight

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
    tiles: Tensor
    """(N, ...): the different tiles of each look, look after look of image after image."""
    first: list[int]
    """Place of each look's first tile in `tiles`; one more for the end."""
    places: list[list[int]]
    """For each tile of a look's layout, its place among the look's different tiles."""
    labels: list[str]
    """What is right for each image, as `Said.label` has it."""
    looks: int = 1
    """Of each image."""

    def __len__(self) -> int:
        return len(self.lengths)

    def prompt(self, sample: int) -> list[int]:
        """Ids of a sample's prompt, without the answer."""
        ids: list[int] = self.ids_MS[sample, : self.prompt_lengths[sample]].tolist()
        return ids

    def look_of(self, number: int) -> int:
        """Place of a number's look among the looks of all images."""
        look, sample = divmod(number, len(self))
        return self.images[sample] * self.looks + look

    def looks_of(self, numbers: Sequence[int]) -> list[int]:
        """Places of the looks of some numbers in order, each once."""
        return list(dict.fromkeys(map(self.look_of, numbers)))

    def tile_rows(self, numbers: Sequence[int]) -> tuple[list[int], list[int]]:
        """Rows in `tiles` of the different tiles of `looks_of`, and for each tile of the numbers' layouts its place there."""
        rows: list[int] = []
        start: dict[int, int] = {}
        for at in self.looks_of(numbers):
            start[at] = len(rows)
            rows += range(self.first[at], self.first[at + 1])
        return rows, [start[at] + place for at in map(self.look_of, numbers) for place in self.places[at]]


def read_samples(
    dataset: Path,
    split: str,
    encoder: prompt.PromptEncoder,
    eye: Eye,
    *,
    spool: Spool,
    threads: int,
    check: Callable[[], None],
    augment: Augment | None = None,
    seed: int = 0,
) -> Samples:
    """Decodes and cuts a split on `threads` threads; `check` is called between chunks and may raise.

    Raises DataError for an empty split.
    """

    looks = 1 if augment is None else 1 + augment.variants

    def prepare(example: Example) -> tuple[list[Sight], list[prompt.Sample]]:
        with Image.open(io.BytesIO(example.image_png)) as image:
            rgb = image.convert("RGB")
        sights = [eye.look(look(rgb, augment, seed=seed, sha256=example.sha256, number=n)) for n in range(looks)]
        return sights, list(_encode(example, encoder, sights[0].layout))

    samples: list[prompt.Sample] = []
    images: list[int] = []
    labels: list[str] = []
    first, all_places = [0], []
    with ThreadPoolExecutor(threads) as pool:
        for chunk in _chunks(read_split(dataset, split)):
            for example, (sights, own) in zip(chunk, pool.map(prepare, chunk), strict=True):
                for sight in sights:
                    spool.append(torch.from_numpy(sight.tiles))
                    first.append(first[-1] + len(sight.tiles))
                    all_places.append(sight.places)
                images += [len(labels)] * len(own)
                samples += own
                labels.append(example.label)
            check()
    if not samples:
        raise DataError(f"the {split} split is empty; give it a larger share in run.labeller.split, or more images")
    ids, targets = prompt.pad(samples, encoder.end_id)
    return Samples(torch.tensor(ids), torch.tensor(targets), [len(sample.ids) for sample in samples],
                   [sample.prompt_length for sample in samples], images, spool.finish(), first, all_places, labels,
                   looks)  # fmt: skip


def check_answers(dataset: Path, encoder: prompt.PromptEncoder, max_new_tokens: int) -> None:
    """Raises UserError when the phone may not write the longest answer of any split to its end."""
    texts = {row.answer for split in SPLITS for row in read_rows(dataset, split)}
    needed = max((len(encoder.answer(text)) for text in texts), default=0)
    if needed > max_new_tokens:
        raise UserError(f"run.device.max_new_tokens: {max_new_tokens} is too small for the longest answer of the dataset, which "
                        f"takes {needed} tokens with its end; set at least {needed}")  # fmt: skip


def _encode(example: Example, encoder: prompt.PromptEncoder, layout: Hashable) -> Iterator[prompt.Sample]:
    """The shipped question with the plain answer, then the variants. Nothing else of a row is ever text of a sample."""
    yield encoder.sample(layout, example.answer)
    for question, answer in example.variants:
        yield encoder.sample(layout, answer, question)


def _chunks(examples: Iterator[Example]) -> Iterator[list[Example]]:
    while chunk := list(islice(examples, CHUNK)):
        yield chunk
