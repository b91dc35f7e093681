"""How the student learns."""

from __future__ import annotations

import math
from typing import Literal, Self

from pydantic import Field, model_validator

from pocketvlm.run_file.block import Block

Part = Literal["vision", "connector", "text"]


class Phase(Block):
    """One phase of training. LoRA is one phase; frozen vision first and everything later are two."""

    method: Literal["lora", "full"] = "lora"
    """`lora`: adapters on linear layers of the parts. `full`: all weights of the parts."""
    train: list[Part] = Field(default=["text"], min_length=1)
    """Parts that learn; the others are frozen."""
    epochs: float = Field(default=3, gt=0, le=1000)
    """Passes over the training split."""
    learning_rate: float = Field(default=2e-4, gt=0, lt=1)
    """Peak rate of AdamW."""
    part_learning_rates: dict[Part, float] = Field(default_factory=dict)
    """Rates of single parts, instead of `learning_rate`."""
    warmup_steps: int = Field(default=0, ge=0)
    """Optimiser steps of linear warm-up."""
    warmup_share: float = Field(default=0.0, ge=0, lt=1)
    """The same as a share of the phase's steps, instead of `warmup_steps`."""
    schedule: Literal["linear", "cosine", "cosine_with_restarts", "inverse_sqrt", "constant"] = "linear"
    """Of the rate after warm-up: a line or half a cosine down to zero; such a cosine again for every epoch; falling as
    1 / sqrt(step / warm-up), which needs a warm-up; or as it is."""
    weight_decay: float = Field(default=0.0, ge=0, lt=1)
    """Of AdamW, on weights of two or more dimensions."""
    rank: int = Field(default=16, ge=1, le=1024)
    """LoRA rank. This and the next three keys are of a `lora` phase only."""
    alpha: float = Field(default=32, gt=0)
    """LoRA alpha; the update is scaled by alpha / rank."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """LoRA dropout."""
    targets: dict[Part, list[str]] = Field(default_factory=dict)
    """LoRA targets by part, as names of linear layers; default: all linear layers of the trained parts."""
    full: list[str] = Field(default_factory=list)
    """Beside the adapters: modules of the trained parts of which all weights learn, such as `[lm_head, embed_tokens]`. Where a
    student's head shares its weights with the embeddings, the two are one module, whichever is named."""

    def idle(self) -> dict[str, str]:
        why = "only a lora phase has it; remove it, or set method: lora"
        return dict.fromkeys(("rank", "alpha", "dropout", "targets", "full"), why) if self.method == "full" else {}

    @model_validator(mode="after")
    def _warms_up_one_way(self) -> Self:
        if self.warmup_steps and self.warmup_share:
            raise ValueError("warmup_share: warmup_steps is set too; remove one")
        if self.schedule == "inverse_sqrt" and not (self.warmup_steps or self.warmup_share):
            raise ValueError("schedule: inverse_sqrt falls from the end of the warm-up; set warmup_steps or warmup_share")
        return self

    @model_validator(mode="after")
    def _rates_can_be(self) -> Self:
        for part, rate in self.part_learning_rates.items():
            if not 0 <= rate < math.inf:
                raise ValueError(f"part_learning_rates.{part}: {rate:g} is no rate; use a number from 0 up")
        return self

    @model_validator(mode="after")
    def _parts_agree(self) -> Self:
        for key in ("part_learning_rates", "targets"):
            for part in getattr(self, key):
                if part not in self.train:
                    raise ValueError(
                        f"{key}.{part}: {part} is not in train {self.train}; add it there or remove this key"
                    )
        if len(set(self.train)) != len(self.train):
            raise ValueError(f"train: a part is named twice in {self.train}")
        return self


class Trackers(Block):
    """Experiment trackers, all off by default; each needs its package."""

    tensorboard: bool = False
    """Event files, in `runs/<run>/tensorboard/` of the store."""
    wandb: str | None = None
    """Project name at Weights & Biases; the key comes from the environment."""
    mlflow: str | None = None
    """Tracking URI."""


class EarlyStop(Block):
    """A phase ends where its validations stop getting better."""

    patience: int = Field(default=3, ge=1)
    """Validations in a row without a gain after which the phase ends."""
    min_gain: float = Field(default=0.0, ge=0, lt=1)
    """Accuracy that a validation must add to count as a gain. 0: it counts if its weights are kept as the best, so by a lower
    loss too."""


class Augment(Block):
    """Training images as phones take them, in fixed variants of each image; validation and test stay as they are.

    Every epoch uses the next of an image's variants, the image itself being one, in an order of its own. With as many variants as
    epochs, no epoch sees the pixels of another. What is done follows from `trainer.seed`, the image and the variant alone. The
    black border of a canvas stays black.
    """

    variants: int = Field(default=3, ge=1, le=100)
    """Of each image, beside itself. Each is cut once, and goes once through a frozen vision tower."""
    jpeg_min: int = Field(default=60, ge=1, le=100)
    """Lowest quality of JPEG; with `jpeg_max`, each variant is written once with a quality between the two and read again."""
    jpeg_max: int = Field(default=95, ge=1, le=100)
    """Highest quality of JPEG."""
    turned: float = Field(default=0.1, ge=0, le=1)
    """Share of the variants that lie on a side or upside down, as a photo does whose EXIF orientation an app forgets. 0 where up
    and down matter, as in digits."""
    light: float = Field(default=0.3, ge=0, lt=1)
    """Brightness, contrast and the three colours change by factors of up to 1 ± this; the colours by a third of it."""
    blurred: float = Field(default=0.3, ge=0, le=1)
    """Share of the variants that are out of focus, by up to 1 % of their longer side."""
    resized: float = Field(default=0.5, ge=0, le=1)
    """Share of the variants that went through an app's own resize: nearest, bilinear, box or bicubic, to half at least."""

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.jpeg_min > self.jpeg_max:
            raise ValueError(f"jpeg_min: {self.jpeg_min} is above jpeg_max {self.jpeg_max}")
        return self


class Trainer(Block):
    """How the student learns."""

    phases: list[Phase] = Field(min_length=1)
    """One after the other, each from the best weights of the one before."""
    batch_size: int = Field(default=16, ge=1, le=4096)
    """Samples of one optimiser step."""
    micro_batch_size: int | None = Field(default=None, ge=1)
    """Samples of one forward pass; must divide `batch_size`; default: the most that `memory_gb` has room for. Where a GPU turns
    out to be too small, it is halved and the step done again: a step stays `batch_size` samples."""
    memory_gb: float | None = Field(default=None, gt=0)
    """Memory (10^9 bytes) that training may take, for the default of `micro_batch_size` and of `gradient_checkpointing`; default:
    90 % of the GPU's, and on a CPU no limit. On a GPU the kept images make room first: they stay on the host."""
    gradient_checkpointing: Literal["auto", True, False] = "auto"
    """Forget the layers' activations and compute them again where they are needed: less memory, about a third more work, the
    same weights. `auto`: only where a micro-batch of one sample does not fit otherwise."""
    base_bits: Literal[16, 8, 4] = 16
    """8 or 4: the frozen base is held in that many bits by bitsandbytes, to be installed. On CUDA and for LoRA only."""
    sampling: Literal["natural", "balanced"] = "natural"
    """`balanced`: an epoch has as many samples as the split, each class equally often; rare ones repeat, frequent ones rest."""
    augment: Augment | None = None
    """Images as phones take them; default: as they are."""
    early_stop: EarlyStop | None = None
    """Ends a phase early; default: it runs to its end."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """`auto`: bf16 where the device computes it natively, else fp32."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """Gradients are clipped to this norm."""
    seed: int = 0
    """Of the order of samples, dropout and adapters."""
    validate_every: float = Field(default=1.0, gt=0)
    """Epochs between two validations by scored answers; each is also a checkpoint."""
    checkpoint_every_steps: int | None = Field(default=None, ge=1)
    """Optimiser steps between checkpoints in the store; default: at each validation."""
    deterministic: bool = True
    """Ask torch for deterministic kernels. On CPU a resumed run is bit-identical to an undisturbed one."""
    trackers: Trackers = Trackers()
    """Experiment trackers."""

    @model_validator(mode="after")
    def _divides(self) -> Self:
        if self.micro_batch_size and self.batch_size % self.micro_batch_size:
            raise ValueError(f"micro_batch_size: {self.micro_batch_size} does not divide batch_size {self.batch_size}")
        return self

    @model_validator(mode="after")
    def _bits_are_frozen(self) -> Self:
        if self.base_bits != 16:
            if len(self.phases) > 1:
                raise ValueError(f"base_bits: a second phase learns on the first one's weights, which {self.base_bits} bits "
                                 "cannot hold; use one phase, or base_bits: 16")  # fmt: skip
            for i, phase in enumerate(self.phases):
                if phase.method == "full" or phase.full:
                    raise ValueError(f"base_bits: {self.base_bits} bits cannot learn, and phases[{i}] trains whole weights; "
                                     "use method: lora without full, or base_bits: 16")  # fmt: skip
        return self
