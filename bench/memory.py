"""Peak memory of training steps beside what `plan` says of it, at published size on random weights; each in a process of its own.

Both sides count tensors. On a GPU the peak of torch's allocator; on the CPU what lies there before the second step and the peak
of torch's own record of what it gives out and takes back during it. Resident memory (highest, over that before the weights) is
shown beside: glibc keeps some of what was given back.

    python -m bench.memory           tens of minutes on two busy cores, 8 GB; --layers shortens it
"""

from __future__ import annotations

import argparse
import gc
import json
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate
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


def measure(config: Any, name: str, batch: int, precision: str, passes: int = 1) -> dict[str, Any]:
    """The second optimiser step of one recipe in this process: the first makes the optimiser's state. Sizes in bytes."""
    import torch
    from transformers import SmolVLMForConditionalGeneration

    from bench.flops import batch_of
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
    before = _resident("VmRSS")
    model: Any = SmolVLMForConditionalGeneration(config)
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
    side, patch_px, patches = config.vision_config.image_size, config.vision_config.patch_size, 0
    if "vision" in phase.train:
        del inputs["features_FTC"]
        # The one tile and the overview hold the same pixels, and go through the tower once.
        inputs |= {"tiles": torch.zeros(batch, side, side, 3, dtype=torch.uint8, device=device),
                   "layout": torch.arange(batch, device=device).repeat_interleave(TILES)}  # fmt: skip
        patches = (side // patch_px) ** 2
    else:
        inputs["features_FTC"] = inputs["features_FTC"].to(next(model.model.vision_model.parameters()).dtype)
    optimiser = torch.optim.AdamW(parameter_groups(model, family, phase), fused=True)
    parameters = [parameter for group in optimiser.param_groups for parameter in group["params"]]

    def step() -> None:
        for _ in range(passes):
            learner(**inputs).backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()

    step()
    optimiser.zero_grad(set_to_none=True)
    gc.collect()
    state = [value for values in optimiser.state.values() for value in values.values()]
    peak = peak_of_tensors(step, [*model.parameters(), *model.buffers(), *inputs.values(), *state], device.type)
    visual = (side // patch_px // config.scale_factor) ** 2 * (1 if patches else TILES)
    trainer = Trainer(phases=[phase], batch_size=batch * passes)
    memory = estimate(
        family, shapes, trainer, phase, Pass(TOKENS, ANSWER_TOKENS, visual, patches), tied_head=False, precision=kind,
        held_bytes=0, checkpointing=checkpointing,
    )  # fmt: skip
    planned = memory.total(batch, batch * passes)
    return {"recipe": name, "batch": batch, "passes": passes, "precision": precision, "device": device.type, "peak": peak,
            "planned": planned, "ratio": round(planned / peak, 3), "resident": _resident("VmHWM") - before}  # fmt: skip


def peak_of_tensors(step: Callable[[], None], lying: Iterable[Any], device: str) -> int:
    """Bytes of tensors at the highest moment of a step. `lying` is all that is there before it, and stays."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        step()
        return torch.cuda.max_memory_allocated()
    storages = {storage.data_ptr(): storage.nbytes() for storage in (tensor.untyped_storage() for tensor in lying)}
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        step()
    events: Any = seen.profiler.kineto_results.events()  # type: ignore[union-attr]
    changes = sorted(((event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]"), key=lambda of: of[0])
    return sum(storages.values()) + max(accumulate(change for _, change in changes))


def _resident(key: str) -> int:
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(f"{key}:")]
    return int(line.split()[1]) * 1024


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints a line for each recipe; exit code 1 where plan and peak differ by more than 15 %."""
    parser = argparse.ArgumentParser(prog="python -m bench.memory", description="Peak memory beside plan's estimate.")
    parser.add_argument("--size", default="256M")
    parser.add_argument("--batch", type=int, default=BATCH)
    parser.add_argument("--passes", type=int, default=1, help="to a step")
    parser.add_argument("--layers", type=int, help="of each tower; default: all")
    parser.add_argument("--precision", default="fp32", choices=("fp32", "bf16"))
    parser.add_argument("--recipe", choices=tuple(RECIPES))
    options = parser.parse_args(arguments)
    if options.recipe:
        from pocketvlm.student import published

        config = published.published_config(published.SIZES[options.size], published.build_published_tokenizer())
        if options.layers:
            config.text_config.num_hidden_layers, config.text_config.layer_types = options.layers, None
            config.vision_config.num_hidden_layers = options.layers
        found = measure(config, options.recipe, options.batch, options.precision, options.passes)
        sizes = {f"{key}_gb": round(found.pop(key) / 1e9, 3) for key in ("peak", "planned", "resident")}
        print(json.dumps({"size": options.size, "layers": options.layers or "all", **found, **sizes}), flush=True)
        return 0
    worst = 0.0
    for name in RECIPES:
        command = [sys.executable, "-m", "bench.memory", "--recipe", name, *(arguments or sys.argv[1:])]
        line = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.strip().splitlines()[-1]
        print(line, flush=True)
        worst = max(worst, abs(json.loads(line)["ratio"] - 1))
    return int(worst > WITHIN)


if __name__ == "__main__":
    sys.exit(main())
