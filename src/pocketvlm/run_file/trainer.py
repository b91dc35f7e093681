"""How the student learns."""

from __future__ import annotations

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
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    """Of the rate, after warm-up, down to zero (`constant`: stays)."""
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

    def idle(self) -> dict[str, str]:
        why = "only a lora phase has it; remove it, or set method: lora"
        return dict.fromkeys(("rank", "alpha", "dropout", "targets"), why) if self.method == "full" else {}

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


class Trainer(Block):
    """How the student learns."""

    phases: list[Phase] = Field(min_length=1)
    """One after the other, each from the best weights of the one before."""
    batch_size: int = Field(default=16, ge=1, le=4096)
    """Samples of one optimiser step."""
    micro_batch_size: int | None = Field(default=None, ge=1)
    """Samples of one forward pass; must divide `batch_size`; default: `batch_size`."""
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
