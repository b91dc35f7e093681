"""Floating-point operations of one training step, beside those of the project's facts: catches a slower step without a GPU.

Counted by torch while the trainer's own Learner goes forward and backward at published size, on random weights: LoRA on all
linear layers of the text model, features kept, 2 tiles. Counts do not depend on how busy the machine is.

    python -m bench.flops            half a minute and 3 GB on two quiet cores
"""

from __future__ import annotations

import json
import sys
from typing import Any

KNOWN_GFLOP = {"256M": 91.0, "500M": 260.0}
"""LoRA with cached features at 2 tiles and 194 tokens, per sample (facts on speed, from the same counter)."""
TOKENS, ANSWER_TOKENS, TILES, BATCH = 194, 3, 2, 2
ALLOWED = 1.1


def build(size: str) -> Any:
    """A student of published shape with random weights, in memory only."""
    from transformers import SmolVLMForConditionalGeneration

    from pocketvlm.student import published

    config = published.published_config(published.SIZES[size], published.build_published_tokenizer())
    return SmolVLMForConditionalGeneration(config)


def batch_of(config: Any, batch: int, tokens: int, answer_tokens: int, tiles: int) -> dict[str, Any]:
    """Arguments of `Learner.forward`, with kept features of random numbers."""
    import torch

    from pocketvlm.student.prompt import IGNORE

    scale = config.scale_factor
    visual = (config.vision_config.image_size // config.vision_config.patch_size) ** 2 // scale**2
    ids_BS = torch.full((batch, tokens), 5)
    ids_BS[:, 4 : 4 + tiles * visual] = config.image_token_id
    labels_BS = torch.full((batch, tokens), IGNORE)
    labels_BS[:, -answer_tokens:] = 5
    return {"ids_BS": ids_BS, "labels": labels_BS, "layout": torch.arange(batch * tiles),
            "features_FTC": torch.randn(batch * tiles, visual, config.vision_config.hidden_size * scale**2)}  # fmt: skip


def step_gflop(size: str) -> float:
    """GFLOP a sample of a step."""
    from torch.utils.flop_counter import FlopCounterMode

    from pocketvlm.run_file import Phase
    from pocketvlm.stages.training.learner import Learner
    from pocketvlm.student import adapters
    from pocketvlm.student.families import FAMILIES

    family, model = FAMILIES["SmolVLMForConditionalGeneration"], build(size)
    phase = Phase(method="lora", train=["text"], rank=16, alpha=32)
    adapters.inject(model, adapters.resolve_targets(model, family, phase), rank=16, alpha=32, dropout=0.0)
    learner = Learner(model, family, "fp32").train()
    with FlopCounterMode(display=False) as counter:
        learner(**batch_of(model.config, BATCH, TOKENS, ANSWER_TOKENS, TILES)).backward()
    return counter.get_total_flops() / 1e9 / BATCH


def main() -> int:
    """Prints a line for each size; exit code 1 where one takes more than 1.1 times what is known."""
    from pocketvlm.environment import calm_idle_threads

    calm_idle_threads()
    worst = 0.0
    for size, known in KNOWN_GFLOP.items():
        found = step_gflop(size)
        worst = max(worst, found / known)
        print(json.dumps({"size": size, "gflop_a_sample": round(found, 1), "known": known, "ratio": round(found / known, 3),
                          "allowed": ALLOWED}), flush=True)  # fmt: skip
    return int(worst > ALLOWED)


if __name__ == "__main__":
    sys.exit(main())
