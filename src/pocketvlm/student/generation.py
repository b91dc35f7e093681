"""Writing answers with torch, greedily and freely: what the merged model says where answers cannot be enumerated.

Shapes as in forward.py. Images whose prompts are equally long go together, so that nothing is filled up and one cache of keys
and values serves all of them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from pocketvlm.student.families import Family
from pocketvlm.student.prompt import PromptEncoder
from pocketvlm.student.scoring import EncodedImage


@dataclass(frozen=True)
class Written:
    """An answer as it was generated."""

    ids: list[int]
    """Without the end token."""
    ended: bool
    """False: the limit came first."""


@torch.inference_mode()
def generate(
    family: Family, model: Any, encoder: PromptEncoder, images: Sequence[EncodedImage], *, max_new_tokens: int,
    batch_size: int = 16,
) -> list[Written]:  # fmt: skip
    """The greedy answer to each image, of at most `max_new_tokens` with the end token."""
    groups: defaultdict[int, list[int]] = defaultdict(list)
    for number, image in enumerate(images):
        groups[len(image.prompt_ids)].append(number)
    written: dict[int, Written] = {}
    for group in groups.values():
        for start in range(0, len(group), batch_size):
            numbers = group[start : start + batch_size]
            found = _generate(family, model, encoder, [images[number] for number in numbers], max_new_tokens)
            written |= zip(numbers, found, strict=True)
    return [written[number] for number in range(len(images))]


def _generate(
    family: Family, model: Any, encoder: PromptEncoder, images: Sequence[EncodedImage], max_new_tokens: int
) -> list[Written]:
    device = next(model.parameters()).device
    cache = family.new_cache(model)
    ids_BS = torch.tensor([image.prompt_ids for image in images], device=device)
    hidden_BSD, position = family.prefill(model, ids_BS, torch.cat([image.features_NTC[image.places] for image in images]), cache)
    ids: list[list[int]] = [[] for _ in images]
    open_ = set(range(len(images)))
    for made in range(max_new_tokens):
        next_B = family.logits(model, hidden_BSD[:, -1]).float().argmax(dim=-1)
        chosen = next_B.tolist()
        ended = {row for row in open_ if chosen[row] == encoder.end_id}
        open_ -= ended
        for row in open_:
            ids[row].append(chosen[row])
        if not open_ or made + 1 == max_new_tokens:
            break
        hidden_BSD, position = family.step(model, next_B.unsqueeze(1), position, cache)
    return [Written(own, row not in open_) for row, own in enumerate(ids)]


@torch.inference_mode()
def next_tokens(
    family: Family, model: Any, encoder: PromptEncoder, images: Sequence[EncodedImage], *, after: str, least_nats: float = -10.0
) -> list[dict[int, float]]:
    """Of each image: token id -> log-probability (nats) of the tokens that may come after prompt and the text `after`.

    Those below `least_nats` are left out: at a probability of 1 in 22,000 nothing hangs on them, and rounding is large there.
    """
    device = next(model.parameters()).device
    more = list(encoder.tokenizer.encode(after, add_special_tokens=False)) if after else []
    found = []
    for image in images:
        ids_BS = torch.tensor([[*image.prompt_ids, *more]], device=device)
        hidden_BSD, _ = family.prefill(model, ids_BS, image.features_NTC[image.places])
        values_V = torch.log_softmax(family.logits(model, hidden_BSD[0, -1]).float(), dim=-1)
        ids = (values_V >= least_nats).nonzero().flatten().tolist()
        found.append(dict(zip(ids, values_V[ids].tolist(), strict=True)))
    return found
