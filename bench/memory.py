"""Peak memory of training steps beside what `plan` says of it, at published size on random weights; each in a process of its own.

On a GPU the peak of torch's allocator; else the peak of resident memory during the steps over what the process held before the
weights. Making random weights takes memory of its own, so that the peak is counted from after it (proc(5), clear_refs).

    python -m bench.memory           a few minutes on two quiet cores, 4 GB
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import resource
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

RECIPES: dict[str, dict[str, Any]] = {
    "lora text, kept features": {"method": "lora", "train": ["text"]},
    "lora text, kept features, activations computed twice": {"method": "lora", "train": ["text"], "checkpointing": True},
    "full connector and text, kept features": {"method": "full", "train": ["connector", "text"]},
    "full, vision too": {"method": "full", "train": ["vision", "connector", "text"]},
}
TOKENS, ANSWER_TOKENS, TILES, BATCH = 194, 3, 2, 4
WITHIN = 0.15


def measure(size: str, name: str, batch: int, precision: str) -> dict[str, Any]:
    """Two optimiser steps of one recipe in this process: the second has the optimiser's state too."""
    import torch

    from bench.flops import batch_of, build
    from pocketvlm.run_file import Phase, Trainer
    from pocketvlm.stages.training.learner import Learner
    from pocketvlm.stages.training.loop import parameter_groups
    from pocketvlm.student import adapters
    from pocketvlm.student.families import FAMILIES
    from pocketvlm.student.memory import Pass, estimate

    recipe = dict(RECIPES[name])
    checkpointing = recipe.pop("checkpointing", False)
    phase, family = Phase.model_validate(recipe), FAMILIES["SmolVLMForConditionalGeneration"]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    gc.collect()
    before = _resident()
    model = build(size)
    shapes = {key: tuple(tensor.shape) for key, tensor in model.named_parameters()}
    if phase.method == "full":
        adapters.train_parts(model, family, phase.train)
    else:
        adapters.inject(model, adapters.resolve_targets(model, family, phase), rank=phase.rank, alpha=phase.alpha, dropout=0.0)
    kind: Any = precision
    learner = Learner(model, family, kind).to(device).train()
    if checkpointing:
        learner.forget_activations()
    inputs = {key: value.to(device) for key, value in batch_of(model.config, batch, TOKENS, ANSWER_TOKENS, TILES).items()}
    patches = 0
    if "vision" in phase.train:
        del inputs["features_FTC"]
        side = model.config.vision_config.image_size
        # The one tile and the overview hold the same pixels, and go through the tower once.
        inputs |= {"tiles": torch.zeros(batch, side, side, 3, dtype=torch.uint8, device=device),
                   "layout": torch.arange(batch, device=device).repeat_interleave(TILES)}  # fmt: skip
        patches = (side // model.config.vision_config.patch_size) ** 2
    optimiser = torch.optim.AdamW(parameter_groups(model, family, phase), fused=True)
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    built = _resident() - before
    for _ in range(2):
        optimiser.zero_grad(set_to_none=True)
        learner(**inputs).backward()
        optimiser.step()
    peak = torch.cuda.max_memory_allocated() if device.type == "cuda" else _peak() - before
    visual, trainer = 64 * (1 if patches else TILES), Trainer(phases=[phase], batch_size=batch)
    memory = estimate(
        family, shapes, trainer, phase, Pass(TOKENS, ANSWER_TOKENS, visual, patches), tied_head=False, precision=kind,
        held_bytes=0, checkpointing=checkpointing,
    )  # fmt: skip
    planned = memory.total(batch, batch)
    return {"recipe": name, "size": size, "batch": batch, "precision": precision, "device": device.type,
            "built_gb": round(built / 1e9, 3), "peak_gb": round(peak / 1e9, 3), "planned_gb": round(planned / 1e9, 3),
            "ratio": round(planned / peak, 3)}  # fmt: skip


def _peak() -> int:
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:")]
    return int(line.split()[1]) * 1024


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints a line for each recipe; exit code 1 where plan and peak differ by more than 15 %."""
    parser = argparse.ArgumentParser(prog="python -m bench.memory", description="Peak memory beside plan's estimate.")
    parser.add_argument("--size", default="256M")
    parser.add_argument("--batch", type=int, default=BATCH)
    parser.add_argument("--precision", default="fp32", choices=("fp32", "bf16"))
    parser.add_argument("--recipe", choices=tuple(RECIPES))
    options = parser.parse_args(arguments)
    if options.recipe:
        print(json.dumps(measure(options.size, options.recipe, options.batch, options.precision)), flush=True)
        return 0
    worst = 0.0
    for name in RECIPES:
        command = [sys.executable, "-m", "bench.memory", "--recipe", name, "--size", options.size, "--batch", str(options.batch),
                   "--precision", options.precision]  # fmt: skip
        line = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()
        print(line, flush=True)
        worst = max(worst, abs(json.loads(line)["ratio"] - 1))
    return int(worst > WITHIN)


if __name__ == "__main__":
    sys.exit(main())
