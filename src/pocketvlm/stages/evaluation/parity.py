"""How far llama.cpp is from transformers, in nats on one token of the answer. Two measures of one thing. No torch.

The token is the first at which the grammar leaves a choice. Where answers are written, it is the one after what all of them
begin with (`Metrics.parity_after`), and compared are all tokens that transformers gives at least LEAST_NATS.

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

LEAST_NATS = -10.0
"""At a probability of 1 in 22,000 nothing hangs on a token, and rounding is large there."""
SPARE_NATS = 2.0
"""How much less llama-server may give a token that is compared; one that it gives still less counts as if it had that."""
Steps = Sequence[Mapping[int, float]]
"""For each image, token id -> log-probability (nats) of each token that is compared."""
DEFINITION = (
    "difference between the log-probabilities of the likeliest token by transformers (float32) and by llama-server, "
    "{place}; the worst image counts"
)
LAYOUT_DEFINITION = (
    "the same with the text weights as float32, as root mean square over all tokens {tokens}: "
    "pixels, tokens and graph without the file's rounding; the worst image counts"
)


def definitions(after: str | None) -> tuple[str, str]:
    """What the two measures are, for a person; `after` is `Metrics.parity_after`."""
    if after is None:
        place, tokens = "where the answer begins", "that the grammar allows there"
    else:
        place, tokens = f"after {after!r}" if after else "where the answer begins", f"of at least {LEAST_NATS:g} nats"
    return DEFINITION.format(place=place), LAYOUT_DEFINITION.format(tokens=tokens)


def of_written(device: Steps, reference: Steps) -> Steps:
    """The device's steps of written answers, cut to the tokens that the reference has."""
    least = LEAST_NATS - SPARE_NATS
    return [{token: here.get(token, least) for token in there} for here, there in zip(device, reference, strict=True)]


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
