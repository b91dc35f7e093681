"""Peak memory of training steps beside what `plan` says of it, at published size on random weights; each in a process of its own.

Both sides count tensors. On a GPU the peak of torch's allocator; on the CPU what lies there before the second step and the peak
of torch's own record of what it gives out and takes back during it. Resident memory (highest, over that before the weights) is
shown beside: glibc keeps some of what was given back.

    python -m bench.memory           three minutes on two quiet cores, 8 GB; --layers shortens it
"""

from __future__ import annotations

import argparse
import gc
import json
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    import torch

    from pocketvlm.run_file import Phase
    from pocketvlm.stages.training.learner import Learner
    from pocketvlm.student.memory import Pass

RECIPES: dict[str, dict[str, Any]] = {
    "lora text, kept features": {"method": "lora", "train": ["text"]},
    "lora text, kept features, activations computed twice": {"method": "lora", "train": ["text"], "checkpointing": True},
    "full connector and text, kept features": {"method": "full", "train": ["connector", "text"]},
    "full, vision too": {"method": "full", "train": ["vision", "connector", "text"]},
}
TOKENS, ANSWER_TOKENS, TILES, BATCH = 194, 3, 2, 4
WITHIN = 0.15


@dataclass(frozen=True)
class Case:
    """One recipe on one student, ready for its first step."""

    phase: Phase
    checkpointing: bool
    learner: Learner
    shapes: dict[str, tuple[int, ...]]
    """Of the base's tensors, by name."""
    inputs: dict[str, Any]
    """Arguments of the learner."""
    longest: Pass
    device: torch.device


def measure(config: Any, name: str, batch: int, precision: str, passes: int = 1) -> dict[str, Any]:
    """The second optimiser step of one recipe in this process: the first makes the optimiser's state. Sizes in bytes."""
    import torch

    from pocketvlm.run_file import Trainer
    from pocketvlm.stages.training.loop import parameter_groups
    from pocketvlm.student.memory import estimate

    before, family = _resident("VmRSS"), _family()
    case = _case(config, name, batch, precision)
    student: Any = case.learner.student
    optimiser = torch.optim.AdamW(parameter_groups(student, family, case.phase), fused=True)
    parameters = [parameter for group in optimiser.param_groups for parameter in group["params"]]

    def step() -> None:
        for _ in range(passes):
            case.learner(**case.inputs).backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()

    step()
    optimiser.zero_grad(set_to_none=True)
    gc.collect()
    state = [value for values in optimiser.state.values() for value in values.values()]
    peak = peak_of_tensors(step, [*student.parameters(), *student.buffers(), *case.inputs.values(), *state], case.device.type)
    trainer, kind = Trainer(phases=[case.phase], batch_size=batch * passes), cast(Any, precision)
    memory = estimate(family, case.shapes, trainer, case.phase, case.longest, tied_head=False, precision=kind, held_bytes=0,
                      checkpointing=case.checkpointing)  # fmt: skip
    planned = memory.total(batch, batch * passes)
    return {"recipe": name, "batch": batch, "passes": passes, "precision": precision, "device": case.device.type, "peak": peak,
            "planned": planned, "ratio": round(planned / peak, 3), "resident": _resident("VmHWM") - before}  # fmt: skip


def _family() -> Any:
    from pocketvlm.student.families import FAMILIES

    return FAMILIES["SmolVLMForConditionalGeneration"]


def _case(config: Any, name: str, batch: int, precision: Any) -> Case:
    import torch
    from transformers import SmolVLMForConditionalGeneration

    from pocketvlm.run_file import Phase
    from pocketvlm.stages.training.learner import Learner
    from pocketvlm.student import adapters

    recipe = dict(RECIPES[name])
    checkpointing = recipe.pop("checkpointing", False)
    phase, family = Phase.model_validate(recipe), _family()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model: Any = SmolVLMForConditionalGeneration(config)
    shapes = {key: tuple(tensor.shape) for key, tensor in model.named_parameters()}
    if phase.method == "full":
        adapters.train_parts(model, family, phase.train)
    else:
        adapters.inject(model, adapters.resolve_targets(model, family, phase), rank=phase.rank, alpha=phase.alpha, dropout=0.0)
    learner = Learner(model, family, precision).to(device).train()
    if checkpointing:
        learner.forget_activations()
    inputs, longest = _inputs(model, batch, device, vision="vision" in phase.train)
    return Case(phase, checkpointing, learner, shapes, inputs, longest, device)


def _inputs(model: Any, batch: int, device: torch.device, *, vision: bool) -> tuple[dict[str, Any], Pass]:
    """Kept features, or tiles for a tower that learns; and how large a sample of them is."""
    import torch

    from bench.flops import batch_of
    from pocketvlm.student.memory import Pass

    config = model.config
    side, scale = config.vision_config.image_size, config.scale_factor
    patches = (side // config.vision_config.patch_size) ** 2
    inputs = {key: value.to(device) for key, value in batch_of(config, batch, TOKENS, ANSWER_TOKENS, TILES).items()}
    if not vision:
        inputs["features_FTC"] = inputs["features_FTC"].to(next(model.model.vision_model.parameters()).dtype)
        return inputs, Pass(TOKENS, ANSWER_TOKENS, patches // scale**2 * TILES, 0)
    del inputs["features_FTC"]
    # The one tile and the overview hold the same pixels, and go through the tower once.
    inputs |= {"tiles": torch.zeros(batch, side, side, 3, dtype=torch.uint8, device=device),
               "layout": torch.arange(batch, device=device).repeat_interleave(TILES)}  # fmt: skip
    return inputs, Pass(TOKENS, ANSWER_TOKENS, patches // scale**2, patches)


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
