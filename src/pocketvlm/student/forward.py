"""The student's forward pass in three steps, so that each is done once: pixels, features, text.

Shapes: B batch, S sequence, N different tiles, T visual tokens of a tile, C vision width x scale factor squared,
D text width, V vocabulary, R rows with a label, H and W pixels.

The vision tower, the connector and the text model are called apart from each other. Features are kept between pixel
shuffle and connector: there they do not depend on the connector, so a frozen tower runs once per image however long
the training. The same path serves training and scoring.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pocketvlm.student.pixels import Pixels
from pocketvlm.student.prompt import IGNORE


def normalise(tiles_NHWC: Tensor, dtype: torch.dtype) -> Tensor:
    """uint8 tiles -> pixels_NCHW in [-1, 1]: mean and deviation 0.5, as both runtimes do."""
    pixels_NCHW = tiles_NHWC.permute(0, 3, 1, 2).to(torch.float32) / 255.0
    return ((pixels_NCHW - 0.5) / 0.5).to(dtype)


def distinct_tiles(tiles_NHWC: Pixels) -> tuple[Pixels, list[int]]:
    """The tiles without repetitions, and for each tile of the layout its place among them.

    In the smallest layout the one tile and the overview hold the same pixels: the tower then runs once per image.
    """
    kept: list[int] = []
    places: list[int] = []
    for i, tile in enumerate(tiles_NHWC):
        same = next((p for p, k in enumerate(kept) if (tiles_NHWC[k] == tile).all()), None)
        places.append(len(kept) if same is None else same)
        if same is None:
            kept.append(i)
    return tiles_NHWC[kept], places


def vision_features(model: Any, pixels_NCHW: Tensor) -> Tensor:
    """pixels_NCHW -> features_NTC, after pixel shuffle and before the connector."""
    patches_NPC = model.model.vision_model(pixel_values=pixels_NCHW).last_hidden_state
    connector = model.model.connector
    features_NTC: Tensor = connector.pixel_shuffle(patches_NPC, connector.scale_factor)
    return features_NTC


def embed(model: Any, ids_BS: Tensor, features_NTC: Tensor, image_id: int) -> Tensor:
    """embeddings_BSD: the features, through the connector, stand where ids_BS has the image token.

    features_NTC are the tiles of all samples in order, repetitions written out. Raises ValueError when their number
    is not that of the image tokens.
    """
    visual_NTD = model.model.connector.modality_projection(features_NTC)
    embeddings_BSD = model.model.text_model.get_input_embeddings()(ids_BS)
    where_BS = ids_BS == image_id
    if int(where_BS.sum()) != visual_NTD.shape[0] * visual_NTD.shape[1]:
        raise ValueError(f"{int(where_BS.sum())} image tokens for {visual_NTD.shape[0]} tiles of {visual_NTD.shape[1]}")
    result: Tensor = embeddings_BSD.masked_scatter(where_BS.unsqueeze(-1), visual_NTD.to(embeddings_BSD.dtype))
    return result


def hidden(model: Any, embeddings_BSD: Tensor) -> Tensor:
    """hidden_BSD of the text model. Samples are filled up on the right, so the causal mask alone is right."""
    hidden_BSD: Tensor = model.model.text_model(inputs_embeds=embeddings_BSD, use_cache=False).last_hidden_state
    return hidden_BSD


def answer_loss(model: Any, hidden_BSD: Tensor, labels_BS: Tensor) -> tuple[Tensor, int]:
    """Sum of the cross-entropies (nats) over answer tokens, and their number R; logits only for those rows."""
    wanted_BS = labels_BS[:, 1:]
    where_BS = wanted_BS != IGNORE
    logits_RV = model.lm_head(hidden_BSD[:, :-1][where_BS])
    targets_R = wanted_BS[where_BS]
    return torch.nn.functional.cross_entropy(logits_RV.float(), targets_R, reduction="sum"), int(targets_R.numel())


def next_token_log_probabilities(model: Any, hidden_BSD: Tensor, last_B: Sequence[int]) -> Tensor:
    """log_probabilities_BV (nats, fp32) of the token after position last_B of each sample."""
    rows = torch.arange(hidden_BSD.shape[0], device=hidden_BSD.device)
    at = torch.as_tensor(last_B, device=hidden_BSD.device)
    return torch.log_softmax(model.lm_head(hidden_BSD[rows, at]).float(), dim=-1)
