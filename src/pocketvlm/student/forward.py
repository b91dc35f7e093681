"""What follows the forward pass of a family: losses and log-probabilities, with logits only where they are wanted.

Shapes: B batch, S sequence, N different tiles, T visual tokens of a tile, C width of a feature, D text width, V vocabulary,
R rows with a label, H and W pixels.

A family's forward pass has three steps, so that each is done once: pixels, features, text (student/families/family.py). A
frozen tower runs once per image however long the training. The same path serves training, scoring and generation.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pocketvlm.student.families import Family
from pocketvlm.student.prompt import IGNORE


def answer_loss(family: Family, model: Any, hidden_BSD: Tensor, labels_BS: Tensor) -> tuple[Tensor, int]:
    """Sum of the cross-entropies (nats) over answer tokens, and their number R; logits only for those rows."""
    wanted_BS = labels_BS[:, 1:]
    where_BS = wanted_BS != IGNORE
    logits_RV = family.logits(model, hidden_BSD[:, :-1][where_BS])
    targets_R = wanted_BS[where_BS]
    return torch.nn.functional.cross_entropy(logits_RV.float(), targets_R, reduction="sum"), int(targets_R.numel())


def next_token_log_probabilities(family: Family, model: Any, hidden_BSD: Tensor, last_B: Sequence[int]) -> Tensor:
    """log_probabilities_BV (nats, fp32) of the token after position last_B of each sample."""
    rows = torch.arange(hidden_BSD.shape[0], device=hidden_BSD.device)
    at = torch.as_tensor(last_B, device=hidden_BSD.device)
    return torch.log_softmax(family.logits(model, hidden_BSD[rows, at]).float(), dim=-1)
