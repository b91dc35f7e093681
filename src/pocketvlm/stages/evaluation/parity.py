"""How far llama.cpp is from transformers, in nats on the first answer token. No torch.

Of one image: the root of the mean squared difference between the log-probabilities (over the whole vocabulary) of all
tokens that the grammar allows where the answer is first chosen. The gate looks at the worst image.

Why not the largest difference of any token: llama.cpp rounds activations to bf16 in bf16 matrix products, and that
noise alone takes a single token past 0.01 nats on one image in 70, up to 0.018 (1,279 images of four trained tiny
students), so that one run of 16 images in five would be refused for nothing. By the root mean square the worst of them
has 0.0096. Why not only the likely tokens: the noise does not grow with improbability, and a sure model hides a fault
there. Of runs of 16 images, tokens of 1 % or more miss a space in the prompt in one of three; the root mean square over
all allowed tokens never misses it, nor tiles in another order, a bilinear resize or the mmproj of another checkpoint.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from pocketvlm.report.results import Parity

DEFINITION = (
    "per image: root mean square, over all tokens that the grammar allows first, of the difference between the "
    "log-probabilities by transformers (float32) and by llama-server (bf16 text, f16 mmproj); the worst image counts"
)


def compare(pair: str, device: Sequence[Mapping[int, float]], reference: Sequence[Mapping[int, float]]) -> Parity:
    """`device` and `reference`: for each image, token id -> log-probability (nats). Raises ValueError for other tokens.

    Other tokens mean another vocabulary or another grammar: nothing to compare then.
    """
    worst, largest, total, tokens = 0.0, 0.0, 0.0, 0
    for here, there in zip(device, reference, strict=True):
        if here.keys() != there.keys():
            raise ValueError(f"the grammar allows {len(here)} first tokens on llama-server and {len(there)} in transformers")
        gaps = [here[token] - there[token] for token in sorted(there)]
        rms = math.sqrt(sum(gap * gap for gap in gaps) / len(gaps))
        worst, largest, total, tokens = max(worst, rms), max(largest, *map(abs, gaps)), total + rms, tokens + len(gaps)
    images = len(reference)
    return Parity(
        pair=pair, images=images, tokens=tokens, max_nats=round(worst, 6), mean_nats=round(total / images, 6),
        max_nats_of_a_token=round(largest, 6),
    )  # fmt: skip
