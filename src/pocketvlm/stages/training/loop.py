"""The HF Trainer on our own data path, and what is done between two optimiser steps.

The Trainer brings accumulation, clipping, schedule, device and its resume (batches of the broken epoch are skipped, all
random states put back). What it trains on, how the loss is counted, and when to validate, save and stop is here.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from pocketvlm.run_file import Phase
from pocketvlm.run_file import Trainer as Settings
from pocketvlm.stages.training.batches import Loader
from pocketvlm.stages.training.learner import Learner
from pocketvlm.stages.training.state import TRAINED
from pocketvlm.student.adapters import load_trained, save_trained
from pocketvlm.student.families import Family

_SCHEDULES = {"linear": "linear", "cosine": "cosine", "constant": "constant_with_warmup"}


def parameter_groups(student: Any, family: Family, phase: Phase) -> list[dict[str, Any]]:
    """AdamW's groups: each part with its own rate, weight decay only on tensors of two or more dimensions."""
    groups: dict[tuple[str, bool], list[Any]] = {}
    for name, parameter in student.named_parameters():
        if parameter.requires_grad:
            groups.setdefault((family.part_of(name), parameter.ndim >= 2), []).append(parameter)
    rates: Mapping[str, float] = {str(part): rate for part, rate in phase.part_learning_rates.items()}
    return [
        {
            "params": parameters,
            "lr": rates.get(part, phase.learning_rate),
            "weight_decay": phase.weight_decay if decays else 0.0,
        }
        for (part, decays), parameters in groups.items()
    ]


def arguments(settings: Settings, phase: Phase, *, seed: int, folder: Path, cpu: bool) -> TrainingArguments:
    """The HF Trainer's settings for one phase. It neither logs, validates nor saves on its own account."""
    micro = settings.micro_batch_size or settings.batch_size
    result = TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=settings.batch_size // micro,
        num_train_epochs=phase.epochs,
        learning_rate=phase.learning_rate,
        lr_scheduler_type=_SCHEDULES[phase.schedule],
        warmup_steps=phase.warmup_steps,
        max_grad_norm=settings.max_grad_norm,
        seed=seed,
        use_cpu=cpu,
        eval_strategy="no",
        save_strategy="no",
        logging_strategy="no",
        # It would wait for the device at every step; `Watch` looks at the losses where it logs them.
        logging_nan_inf_filter=False,
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        label_names=["labels"],
    )
    _ = result.device
    # Otherwise several visible GPUs would become one DataParallel, which splits a batch that cannot be split.
    result._n_gpu = min(result._n_gpu, 1)
    return result


class PhaseTrainer(Trainer):  # type: ignore[misc]
    """The HF Trainer for one phase."""

    loss_is_scaled_for_ga = True
    """compute_loss divides by the tokens of the whole optimiser step."""

    def __init__(
        self,
        learner: Learner,
        args: TrainingArguments,
        loader: Loader,
        groups: list[dict[str, Any]],
        callbacks: list[TrainerCallback],
    ) -> None:
        self.learner = learner
        self._loader = loader
        self._groups = groups
        self.losses: list[Tensor] = []
        """Of the micro-batches since someone took them away; on the device."""
        super().__init__(model=learner, args=args, callbacks=callbacks)
        self.remove_callback(PrinterCallback)

    def get_train_dataloader(self) -> Loader:
        """Ours; it neither needs to be wrapped nor sharded."""
        return self._loader

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """AdamW over the groups; the fused kernel is one pass over memory instead of a dozen."""
        del model
        self.optimizer: torch.optim.Optimizer = torch.optim.AdamW(self._groups, fused=True)
        return self.optimizer

    def compute_loss(
        self, model: Any, inputs: dict[str, Tensor], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Tensor:
        """Share of this micro-batch in the mean over all answer tokens of the optimiser step."""
        assert not return_outputs and num_items_in_batch is not None, "only training comes here, with labels"
        loss: Tensor = model(**inputs) / num_items_in_batch
        return loss

    def training_step(self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        """One micro-batch, forward and backward."""
        loss: Tensor = super().training_step(model, inputs, num_items_in_batch)
        self.losses.append(loss)
        return loss

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Only what learns."""
        assert output_dir is not None, "only checkpoints are saved this way"
        Path(output_dir).mkdir(parents=True, exist_ok=True)
        save_trained(self.learner.student, Path(output_dir) / TRAINED)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        load_trained(self.learner.student, Path(resume_from_checkpoint) / TRAINED)
