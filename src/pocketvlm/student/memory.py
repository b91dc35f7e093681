"""How much memory training takes, from the shapes of the student's tensors, and what size of a pass fits. No torch.

Per weight: 4 bytes where it learns, 4 more for its gradient and 8 for AdamW's two moments; with bf16 arithmetic 2 more for the
copy that autocast keeps of it. A frozen one takes 4, 2 or, in a base of few bits, about 1 or 0.5.

Per token and block, what the backward pass needs again (read from the forward passes of transformers' Llama and SigLIP and peft's
LoRA layer, and held against peak memory by `python -m bench.memory`): of every linear layer what goes in and what comes out,
what attention gives, twice the stream between the layers in fp32 for its norms (once more where the norms learn), and of a gated
MLP the gate after its non-linearity. What goes in counts once a layer with bf16, since autocast makes a copy for each; with fp32
once for all layers that share it. The head counts only where labels are.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from pocketvlm.run_file import Part, Phase, Trainer
from pocketvlm.student.families import HEAD, PARTS, Family, full_modules, lora_targets

Shape = tuple[int, ...]
BITS_BYTES = {8: 1.05, 4: 0.55}
"""A weight of a base in few bits, its scales included."""
LOGIT_BYTES = 14
"""Of one number of the logits: bf16, fp32, its log-softmax and its gradient."""


@dataclass(frozen=True)
class Pass:
    """The longest sample of a pass."""

    tokens: int
    """Of prompt and answer."""
    answer_tokens: int
    visual_tokens: int
    """Of different tiles."""
    patches: int
    """That the vision tower sees of different tiles; 0 where features are kept."""


@dataclass(frozen=True)
class Memory:
    """Bytes that a phase takes."""

    weights: float
    gradients: float
    moments: float
    held: float
    """Features or pixels of all images, where they lie on the device."""
    a_sample: float
    """Activations of one sample of a pass."""
    transient: float
    """The same while one block is gone back through."""

    def total(self, size: int, batch_size: int) -> float:
        """With passes of `size` samples. Where one pass is a step, activations are given back while gradients come."""
        activations = size * (self.a_sample + self.transient)
        several = size < batch_size
        return (self.weights + self.moments + self.held
                + (self.gradients + activations if several else max(self.gradients, activations)))  # fmt: skip


@dataclass(frozen=True)
class Passes:
    """How the samples of a step are gone through."""

    size: int
    checkpointing: bool
    memory: Memory
    batch_size: int
    fits: bool
    """False: not even this is within the budget."""

    @property
    def gigabytes(self) -> float:
        """In all, 10^9 bytes."""
        return self.memory.total(self.size, self.batch_size) / 1e9

    @property
    def words(self) -> str:
        """For a person."""
        m, short = self.memory, "" if self.fits else ", which is more than there is"
        activations = self.size * (m.a_sample + m.transient) / 1e9
        how = ", activations computed twice" if self.checkpointing else ""
        return (f"about {self.gigabytes:.2f} GB in passes of {self.size}{how}{short}: weights {m.weights / 1e9:.2f}, gradients "
                f"{m.gradients / 1e9:.2f}, AdamW {m.moments / 1e9:.2f}, activations {activations:.2f}, images {m.held / 1e9:.2f}")


def choose_passes(
    family: Family, shapes: Mapping[str, Shape], settings: Trainer, phase: Phase, longest: Pass, *, tied_head: bool,
    precision: Literal["bf16", "fp32"], held_bytes: float = 0, budget_bytes: float | None = None, processes: int = 1,
) -> Passes:  # fmt: skip
    """The size that the run file gives, or else the largest that halves `batch_size` often enough to be within the budget.

    `shapes` has the tensors of the base by name.
    """
    budget = settings.memory_gb * 1e9 if settings.memory_gb else budget_bytes or math.inf
    asked = settings.micro_batch_size
    largest = asked or -(-settings.batch_size // processes)
    ways = {"auto": (False, True), True: (True,), False: (False,)}[settings.gradient_checkpointing]
    for checkpointing in ways:
        memory = estimate(family, shapes, settings, phase, longest, tied_head=tied_head, precision=precision,
                          held_bytes=held_bytes, checkpointing=checkpointing)  # fmt: skip
        size = largest
        while size > 1 and not asked and memory.total(size, settings.batch_size) > budget:
            size = -(-size // 2)
        fits = memory.total(size, settings.batch_size) <= budget
        if fits or checkpointing == ways[-1]:
            return Passes(size, checkpointing, memory, settings.batch_size, fits)
    raise AssertionError("the last way is always taken")


def estimate(
    family: Family, shapes: Mapping[str, Shape], settings: Trainer, phase: Phase, longest: Pass, *, tied_head: bool,
    precision: Literal["bf16", "fp32"], held_bytes: float, checkpointing: bool,
) -> Memory:  # fmt: skip
    """Memory of a phase."""
    b = 2 if precision == "bf16" else 4
    sizes = {name: math.prod(shape) for name, shape in shapes.items() if not (tied_head and name == f"{HEAD}.weight")}
    layers = family.linear_layers(shapes, tied_head=tied_head)
    whole = {name for name in sizes if family.part_of(name) in phase.train}
    adapted = 0
    targets: list[str] = []
    if phase.method == "lora":
        targets, _ = lora_targets(family, layers, phase, tied_head=tied_head)
        adapted = sum(phase.rank * sum(shapes[f"{path}.weight"]) for path in targets)
        modules, _ = full_modules(family, [name.removesuffix(".weight") for name in shapes if name.endswith(".weight")], phase)
        whole = {name for name in sizes if name.rpartition(".")[0] in modules}
        if tied_head and HEAD in modules:
            whole |= {name for name in sizes if name.endswith("embed_tokens.weight")}
    learning = sum(sizes[name] for name in whole)
    # Autocast copies what a matrix product reads: no embeddings, unless they are the head too.
    copied = {f"{path}.weight" for path in layers} | ({name for name in sizes if name.endswith("embed_tokens.weight")} & whole
                                                      if tied_head else set())  # fmt: skip
    matrices = sum(sizes[name] for name in whole & copied) if b == 2 else 0
    in_bits = sum(sizes[f"{path}.weight"] for path in layers if f"{path}.weight" in sizes) if settings.base_bits != 16 else 0
    frozen = sum(sizes.values()) - learning - in_bits
    weights = 4 * learning + 2 * matrices + b * frozen + BITS_BYTES.get(settings.base_bits, 0) * in_bits + 4 * adapted
    saved, transient = _activations(family, shapes, phase, longest, b, targets, checkpointing)
    head = longest.answer_tokens * _vocabulary(shapes) * LOGIT_BYTES
    return Memory(weights, 4 * (learning + adapted), 8 * (learning + adapted), held_bytes, saved + head, transient)


def _activations(
    family: Family, shapes: Mapping[str, Shape], phase: Phase, longest: Pass, b: int, targets: list[str], checkpointing: bool
) -> tuple[float, float]:
    """Bytes that a sample's forward pass keeps, and those of going back through its largest block."""
    tokens: dict[Part, int] = {"vision": longest.patches, "connector": longest.visual_tokens, "text": longest.tokens}
    first = min(PARTS.index(part) for part in phase.train)
    saved = transient = 0.0
    blocks: defaultdict[tuple[Part, str], dict[str, Shape]] = defaultdict(dict)
    for name, shape in shapes.items():
        block = re.match(r"(.*\.\d+)\.", name)
        if len(shape) == 2 and name.endswith(".weight") and block:
            blocks[family.part_of(name), block[1]][name.removesuffix(".weight")] = shape
    for (part, _), linears in blocks.items():
        if PARTS.index(part) < first:
            continue  # nothing before what learns is gone back through
        learns = part in phase.train and phase.method == "full"
        whole = tokens[part] * _block_bytes(linears, b, learns, sum(path in targets for path in linears) * phase.rank)
        stream = tokens[part] * 4 * _width(linears)
        saved += stream if checkpointing else whole
        transient = max(transient, whole if checkpointing else whole / 2)
    return saved, transient


def _block_bytes(linears: Mapping[str, Shape], b: int, learns: bool, ranks: int) -> float:
    """Per token, see above."""
    width, widest = _width(linears), max(out for out, _ in linears.values())
    gated = sum(out == widest for out, _ in linears.values()) > 1
    ins = [wide for _, wide in linears.values()]
    # With fp32, queries, keys and values share what goes in, and so do the two halves of a gated MLP.
    shared = sum(ins) if b == 2 else sum(ins) - width * (2 + gated)
    outs = sum(out for out, _ in linears.values())
    stream = 2 * (4 - b) * width + (8 * width if learns else 0)
    return b * (shared + outs + width + (widest if gated else 0) + ranks) + stream


def _width(linears: Mapping[str, Shape]) -> int:
    """Of the stream between the layers: what most layers read."""
    ins = [wide for _, wide in linears.values()]
    return max(ins, key=ins.count)


def _vocabulary(shapes: Mapping[str, Shape]) -> int:
    ends = ("embed_tokens.weight", f"{HEAD}.weight")
    return max((shape[0] for name, shape in shapes.items() if name.endswith(ends)), default=0)
