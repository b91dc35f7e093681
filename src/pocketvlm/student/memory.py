"""How much memory training takes, from the shapes of the student's tensors, and what size of a pass fits. No torch.

It is the peak of what torch's allocator gives out: on a GPU what counts, but for CUDA's own and what fragments. Resident memory
of a process on the CPU is more: 0.9 GB for Python, torch and transformers, and what glibc keeps of what was given back (0.25 GB
or an eighth for 256M by LoRA; with a fixed M_MMAP_THRESHOLD resident memory was the tensors' to 2 %).

Per weight: 4 bytes where it learns, 4 more for its gradient and 8 for AdamW's two moments. A frozen one takes 4, 2 or, in a base
of few bits, about 1 or 0.5. With bf16 arithmetic, autocast's copy of a matrix that learns (2) lives until it is gone back
through, and its gradient is there twice for a moment, in bf16 and in fp32.

Per token and block, what the backward pass needs again, counted from torch's records of allocations alive after the forward
pass of transformers' Llama and SigLIP and peft's LoRA layer, in fp32 and bf16: what goes into each layer that learns (with bf16
a copy each; with fp32 queries, keys and values share it, and so do the halves of a gated MLP), what comes out of each layer that
does not write into the stream between the blocks, what a gated MLP's gate gives, twice the stream in fp32 for the two norms, once
more each where RMSNorm learns (LayerNorm keeps only its input), what attention gives where that is not the very input kept above,
and what lies between A and B of an adapter. Dropout adds its mask: one byte is counted (CUDA; the CPU has four; not measured).

Going back, a block's activations go and its gradients come: the peak is that of this walk, block by block from the head.
`python -m bench.memory` and tests/student/test_memory.py hold it against real steps.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from pocketvlm.run_file import Part, Phase, Trainer
from pocketvlm.student.families import HEAD, PARTS, Family, full_modules, lora_targets

Shape = tuple[int, ...]
HELD_BYTES = 4 << 30
"""Features or pixels of a split up to this size lie on the device where it has room, larger ones in a file: 1,000 images of two
tiles at SmolVLM's size are 0.8 GB of pixels and 1.6 GB of bf16 features."""
BITS_BYTES = {8: 1.05, 4: 0.55}
"""A weight of a base in few bits, its scales included."""
LOGIT_BYTES = 12
"""Of one number of the logits on the way back: log-softmax, its gradient and the logits' own, fp32 each."""


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
class Block:
    """What the backward pass goes through at once, bytes."""

    a_sample: float
    """Activations of one sample that are kept for it."""
    transient: float
    """More of them for one sample while it is gone back through."""
    copies: float
    """Of its weights, by autocast."""
    gradients: float
    largest: float
    """Of its gradients: where several passes add up, the newest is there beside their sum."""
    fresh: float
    """The same in bf16, before it is made fp32."""


@dataclass(frozen=True)
class Memory:
    """Bytes that a phase takes."""

    weights: float
    moments: float
    held: float
    """Features or pixels of all images, where they lie on the device."""
    inputs: float
    """What one sample of a pass is given of images."""
    blocks: tuple[Block, ...]
    """In the order of the forward pass."""

    @property
    def gradients(self) -> float:
        """All of them."""
        return sum(block.gradients for block in self.blocks)

    def activations(self, size: int) -> float:
        """When a pass of `size` samples turns back."""
        return sum(size * block.a_sample + block.copies for block in self.blocks) + size * self.inputs

    def total(self, size: int, batch_size: int) -> float:
        """With passes of `size` samples. Where there are several to a step, the gradients of those before are there too."""
        several = size < batch_size
        now, peak = self.activations(size) + (self.gradients if several else 0), 0.0
        for block in reversed(self.blocks):
            peak = max(peak, now + size * block.transient)
            now += (0 if several else block.gradients) - size * block.a_sample - block.copies
            peak = max(peak, now + block.fresh + (block.largest if several else 0))
        return self.weights + self.moments + self.held + peak


@dataclass(frozen=True)
class Passes:
    """How the samples of a step are gone through."""

    size: int
    checkpointing: bool
    memory: Memory
    batch_size: int
    fits: bool
    """False: not even this is within the budget."""
    images_on_host: bool = False
    """Features or pixels stay there, and each pass brings its own: the device has no room for all of them."""

    @property
    def gigabytes(self) -> float:
        """In all, 10^9 bytes."""
        return self.memory.total(self.size, self.batch_size) / 1e9

    @property
    def words(self) -> str:
        """For a person."""
        m, short = self.memory, "" if self.fits else ", which is more than there is"
        activations = m.activations(self.size) / 1e9
        images = "in the host's memory" if self.images_on_host else f"{m.held / 1e9:.2f}"
        how = ", activations computed twice" if self.checkpointing else ""
        return (f"about {self.gigabytes:.2f} GB in passes of {self.size}{how}{short}: weights {m.weights / 1e9:.2f}, gradients "
                f"{m.gradients / 1e9:.2f}, AdamW {m.moments / 1e9:.2f}, activations {activations:.2f}, images {images}")


def choose_passes(
    family: Family, shapes: Mapping[str, Shape], settings: Trainer, phase: Phase, longest: Pass, *, tied_head: bool,
    precision: Literal["bf16", "fp32"], held_bytes: float = 0, budget_bytes: float | None = None, processes: int = 1,
    own_memory: bool = True,
) -> Passes:  # fmt: skip
    """The size that the run file gives, or else the largest that halves `batch_size` often enough to be within the budget.

    `shapes` has the tensors of the base by name. A device with memory of its own leaves the images on the host before it halves:
    those of a pass are few beside all.
    """
    budget = settings.memory_gb * 1e9 if settings.memory_gb else budget_bytes or math.inf
    asked = settings.micro_batch_size
    largest = asked or -(-settings.batch_size // processes)
    ways = {"auto": (False, True), True: (True,), False: (False,)}[settings.gradient_checkpointing]
    for checkpointing in ways:
        memory = estimate(family, shapes, settings, phase, longest, tied_head=tied_head, precision=precision,
                          held_bytes=held_bytes, checkpointing=checkpointing)  # fmt: skip
        on_host = own_memory and held_bytes > 0 and memory.total(largest, settings.batch_size) > budget
        if on_host:
            memory = replace(memory, held=0)
        size = largest
        while size > 1 and not asked and memory.total(size, settings.batch_size) > budget:
            size = -(-size // 2)
        fits = memory.total(size, settings.batch_size) <= budget
        if fits or checkpointing == ways[-1]:
            return Passes(size, checkpointing, memory, settings.batch_size, fits, on_host)
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
    targets: list[str] = []
    if phase.method == "lora":
        targets, _ = lora_targets(family, layers, phase, tied_head=tied_head)
        modules, _ = full_modules(family, [name.removesuffix(".weight") for name in shapes if name.endswith(".weight")], phase)
        whole = {name for name in sizes if name.rpartition(".")[0] in modules}
        if tied_head and HEAD in modules:
            whole |= {name for name in sizes if name.endswith("embed_tokens.weight")}
    learning = {name: sizes[name] for name in whole}
    adapted = sum(phase.rank * sum(shapes[f"{path}.weight"]) for path in targets)
    few = [path for path in layers if path != HEAD and f"{path}.weight" in sizes] if settings.base_bits != 16 else []
    in_bits = sum(sizes[f"{path}.weight"] for path in few)
    number = sum(learning.values()) + adapted
    frozen = sum(sizes.values()) - sum(learning.values()) - in_bits
    weights = 4 * number + b * frozen + BITS_BYTES.get(settings.base_bits, 0) * in_bits
    read = {f"{path}.weight" for path in layers}
    blocks = _blocks(family, shapes, phase, longest, _Learns(learning, set(targets), read, tied_head), b, checkpointing)
    # The features of a pass, and once more in the order of its tiles.
    inputs = 0 if longest.patches else 2 * b * longest.visual_tokens * feature_width(family, shapes)
    return Memory(weights, 8 * number, held_bytes, inputs, blocks)


def feature_width(family: Family, shapes: Mapping[str, Shape]) -> int:
    """Numbers of a visual token as features are kept: what the connector reads; where they come from behind it, as many as the
    text has, once for each of its branches (deepstack has some)."""
    own = {name.removesuffix(".weight"): shape for name, shape in shapes.items()
           if len(shape) == 2 and family.part_of(name) == "connector"}  # fmt: skip
    if "connector" not in family.features_of:
        return max((wide for _, wide in own.values()), default=0)
    text = next((shape[1] for name, shape in shapes.items() if name.endswith("embed_tokens.weight")), 0)
    return text * len({path.rpartition(".")[0] for path in own})


@dataclass(frozen=True)
class _Learns:
    """What of a student does."""

    sizes: Mapping[str, int]
    """Of tensors that learn whole."""
    targets: set[str]
    read: set[str]
    """Weights that matrix products read."""
    tied_head: bool


def _blocks(
    family: Family, shapes: Mapping[str, Shape], phase: Phase, longest: Pass, learns: _Learns, b: int, checkpointing: bool
) -> tuple[Block, ...]:
    """From the first part that learns on: nothing before it is gone back through."""
    tokens: dict[Part, int] = {"vision": longest.patches, "connector": longest.visual_tokens, "text": longest.tokens}
    first = min(PARTS.index(part) for part in phase.train)
    own: defaultdict[tuple[int, str], dict[str, Shape]] = defaultdict(dict)
    for name, shape in shapes.items():
        part, block = PARTS.index(family.part_of(name)), re.match(r"(.*\.\d+)\.", name)
        is_head = name == f"{HEAD}.weight" or (learns.tied_head and name.endswith("embed_tokens.weight"))
        if part >= first and not (learns.tied_head and name == f"{HEAD}.weight"):
            own[(len(PARTS), HEAD) if is_head else (part, block[1] if block else "")][name] = shape
    blocks = []
    for (part, path), tensors in sorted(own.items(), key=lambda item: item[0]):
        linears = {name.removesuffix(".weight"): shape for name, shape in tensors.items() if name in learns.read}
        saved = transient = 0.0
        if path == HEAD:
            transient = LOGIT_BYTES * longest.answer_tokens * max(shape[0] for shape in tensors.values())
        elif not path:
            wide = max((shape[1] for name, shape in tensors.items() if len(shape) == 2 and name not in learns.read), default=0)
            # The stream as it comes in, and for the norm at its end.
            saved = tokens[PARTS[part]] * 8 * wide
            if longest.patches:  # else the features are there anyway
                saved += tokens[PARTS[part]] * b * sum(shape[1] for path, shape in linears.items() if _chosen(path, learns))
        elif linears:
            whole = tokens[PARTS[part]] * _block_bytes(linears, phase, learns, b)
            saved = tokens[PARTS[part]] * 4 * _width(linears) if checkpointing else whole
            transient = (whole if checkpointing else 0) + tokens[PARTS[part]] * 2 * b * max(out for out, _ in linears.values())
        blocks.append(_block(tensors, phase, learns, b, saved, transient))
    return tuple(blocks)


def _block(tensors: Mapping[str, Shape], phase: Phase, learns: _Learns, b: int, saved: float, transient: float) -> Block:
    """With what its weights take besides."""
    sizes = {name: learns.sizes[name] for name in tensors if name in learns.sizes}
    adapters = sum(phase.rank * sum(shape) for name, shape in tensors.items() if name.removesuffix(".weight") in learns.targets)
    read = [size for name, size in sizes.items()
            if name in learns.read or (learns.tied_head and name.endswith("embed_tokens.weight"))]  # fmt: skip
    copies, fresh = (2 * (sum(read) + adapters), 2 * max(read, default=0)) if b == 2 else (0, 0)
    gradients, largest = 4 * (sum(sizes.values()) + adapters), 4 * max(sizes.values(), default=0)
    return Block(saved, transient, copies, gradients, largest, fresh)


def _chosen(path: str, learns: _Learns) -> bool:
    return path in learns.targets or f"{path}.weight" in learns.sizes


def _block_bytes(linears: Mapping[str, Shape], phase: Phase, learns: _Learns, b: int) -> float:
    """Per token, see above."""
    width, widest = _width(linears), max(out for out, _ in linears.values())
    gated = sum(out == widest for out, _ in linears.values()) > 1
    ins = [wide for path, (_, wide) in linears.items() if _chosen(path, learns)]
    whole = any(f"{path}.weight" in learns.sizes for path in linears)
    ranks = phase.rank * sum(path in learns.targets for path in linears)
    masks = sum(ins) if ranks and phase.dropout else 0
    if b == 4 and not masks:
        # What the norms and attention give: at most three inputs of the stream's width.
        ins = [wide for wide in ins if wide != width] + [width] * min(3, ins.count(width))
    outs = max(0, sum(out for out, _ in linears.values()) - 2 * width)
    kept = sum(ins) + outs + (widest if gated else 0) + (0 if whole or b == 4 else width) + ranks
    return b * kept + masks + 8 * width + (8 * width if whole and gated else 0)


def _width(linears: Mapping[str, Shape]) -> int:
    """Of the stream between the layers: what most layers read."""
    ins = [wide for _, wide in linears.values()]
    return max(ins, key=ins.count)
