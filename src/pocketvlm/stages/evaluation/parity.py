"""How far llama.cpp is from transformers, in nats on the first answer token. Two measures of one thing. No torch.

**Answers**: the bf16 pair as it lies in the store. Of one image: the difference between the log-probabilities (over
the whole vocabulary) of the token that transformers answers with first. It says how far the file's answers are off,
its rounding included.

**Layout**: the same text weights as float32, which holds bf16 exactly, so that nothing but pixels, token stream and
graph is left to differ. Of one image: the root of the mean squared difference over *all* tokens that the grammar allows
first. A model that is sure of itself hides a fault in the token that it chooses and shows it in the others; and there
the bf16 file cannot be used, because llama.cpp rounds activations to bf16 in bf16 matrix products: on a trained tiny
student that noise alone reached 0.0097 nats on 120 sound images, and 0.0028 with float32 weights. Among the planted
faults, a bicubic resize, the smallest, gives 0.03; a space in the prompt 0.2.

Of each, the worst image counts, and both are held against `max_parity_nats`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from pocketvlm.report.results import Parity

Steps = Sequence[Mapping[int, float]]
"""For each image, token id -> log-probability (nats) of each token that the grammar allows first."""
DEFINITION = (
    "difference between the log-probabilities of the first answer token by transformers (float32) and by llama-server; "
    "the worst image counts"
)
LAYOUT_DEFINITION = (
    "the same with the text weights as float32, as root mean square over all tokens that the grammar allows first: "
    "pixels, tokens and graph without the file's rounding; the worst image counts"
)


def compare_answers(pair: str, device: Steps, reference: Steps) -> Parity:
    """The token that the reference gives the most. Raises ValueError when the two allow other tokens."""
    gaps = []
    for here, there in _matched(device, reference):
        answer = max(sorted(there), key=lambda token: there[token])
        gaps.append([here[answer] - there[answer]])
    return _summary(pair, gaps)


def compare_layout(pair: str, device: Steps, reference: Steps) -> Parity:
    """All allowed tokens. Raises ValueError when the two allow other tokens."""
    matched = _matched(device, reference)
    return _summary(pair, [[here[token] - there[token] for token in sorted(there)] for here, there in matched])


def _matched(device: Steps, reference: Steps) -> list[tuple[Mapping[int, float], Mapping[int, float]]]:
    matched = list(zip(device, reference, strict=True))
    for here, there in matched:
        if here.keys() != there.keys():  # another vocabulary or another grammar: nothing to compare
            raise ValueError(f"the grammar allows {len(here)} first tokens on llama-server and {len(there)} in transformers")
    return matched


def _summary(pair: str, gaps: Sequence[Sequence[float]]) -> Parity:
    of_images = [math.sqrt(sum(gap * gap for gap in image) / len(image)) for image in gaps]
    return Parity(
        pair=pair, images=len(gaps), tokens=sum(map(len, gaps)), max_nats=round(max(of_images), 6),
        mean_nats=round(sum(of_images) / len(of_images), 6),
        max_nats_of_a_token=round(max(abs(gap) for image in gaps for gap in image), 6),
    )  # fmt: skip
