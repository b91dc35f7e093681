"""Scoring answers with torch as the phone chooses them: greedy, inside the grammar, one forward pass per image.

Shapes as in forward.py. One pass decides when the first tokens of all answers differ; only images whose answer is
still open after it get another pass, on the same visual features.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from pocketvlm.student import forward
from pocketvlm.student.families import Eye, Family
from pocketvlm.student.grammar import AllowedAnswers
from pocketvlm.student.prompt import PromptEncoder


@dataclass(frozen=True)
class EncodedImage:
    """One image, ready for scoring: its prompt's ids_S and the features of its tiles, repetitions left out."""

    prompt_ids: list[int]
    features_NTC: Tensor
    places: list[int]
    """For each tile of the layout, its place in features_NTC."""


@dataclass(frozen=True)
class Answer:
    """What was answered, and how surely."""

    index: int
    """Of the text among those that may be answered: the class."""
    confidence: float
    """Probability of the answer among those that the grammar allows, in [0, 1]."""
    first_step: dict[int, float] = field(repr=False)
    """Token id -> log-probability (nats, over the whole vocabulary) of every token allowed at the first choice."""


@torch.inference_mode()
def encode_images(
    family: Family, model: Any, encoder: PromptEncoder, eye: Eye, images: Iterable[Image.Image], *, batch_size: int = 16
) -> Iterator[EncodedImage]:
    """RGB images (after the device's canvas) -> EncodedImage, in order; the vision tower runs on batches of tiles."""
    device = next(model.parameters()).device
    pending = iter(images)
    while chunk := list(islice(pending, batch_size)):
        seen = [eye.look(image) for image in chunk]
        features_NTC = family.features(model, torch.cat([torch.from_numpy(sight.tiles) for sight in seen]).to(device))
        split = torch.split(features_NTC, [len(sight.tiles) for sight in seen])
        for sight, features in zip(seen, split, strict=True):
            yield EncodedImage(encoder.prompt(sight.layout), features, sight.places)


@torch.inference_mode()
def score(
    family: Family, model: Any, encoder: PromptEncoder, allowed: AllowedAnswers, images: Sequence[EncodedImage], *,
    batch_size: int = 16,
) -> list[Answer]:  # fmt: skip
    """The greedy answer inside the grammar for each image."""
    answers: list[Answer] = []
    for start in range(0, len(images), batch_size):
        answers += _score_batch(family, model, encoder, allowed, images[start : start + batch_size])
    return answers


def _score_batch(
    family: Family, model: Any, encoder: PromptEncoder, allowed: AllowedAnswers, images: Sequence[EncodedImage]
) -> list[Answer]:
    written: list[bytes] = [b""] * len(images)
    chosen: list[list[int]] = [[] for _ in images]
    log_confidence = [0.0] * len(images)
    first: list[dict[int, float]] = [{} for _ in images]
    open_ = list(range(len(images)))
    while open_:
        batch = [(images[i], chosen[i]) for i in open_]
        log_probabilities_BV = _next(family, model, encoder, batch)
        for row, i in enumerate(open_):
            following = allowed.following(written[i])
            ids = sorted(following)
            values = log_probabilities_BV[row, ids].tolist()
            best = max(range(len(ids)), key=lambda k: values[k])
            if len(allowed.compatible(written[i])) > 1 and not first[i] and len(ids) > 1:
                first[i] = dict(zip(ids, values, strict=True))
            top = max(values)
            log_confidence[i] += values[best] - top - math.log(sum(math.exp(v - top) for v in values))
            chosen[i].append(ids[best])
            written[i] = following[ids[best]]
        open_ = [i for i in open_ if allowed.decided(written[i]) is None]
    return [Answer(_decided(allowed, written[i]), math.exp(log_confidence[i]), first[i]) for i in range(len(images))]


def _decided(allowed: AllowedAnswers, written: bytes) -> int:
    index = allowed.decided(written)
    assert index is not None, "the loop ends when every answer is decided"
    return index


def _next(
    family: Family, model: Any, encoder: PromptEncoder, batch: Sequence[tuple[EncodedImage, list[int]]]
) -> Tensor:
    """log_probabilities_BV after each image's prompt and the answer tokens chosen so far."""
    device = next(model.parameters()).device
    rows = [[*image.prompt_ids, *answered] for image, answered in batch]
    longest = max(map(len, rows))
    ids_BS = torch.tensor([row + [encoder.end_id] * (longest - len(row)) for row in rows], device=device)
    features_NTC = torch.cat([image.features_NTC[image.places] for image, _ in batch])
    hidden_BSD, _ = family.prefill(model, ids_BS, features_NTC)
    return forward.next_token_log_probabilities(family, model, hidden_BSD, [len(row) - 1 for row in rows])
