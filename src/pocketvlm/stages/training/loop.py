"""One optimiser step after the other, on our own data path.

A step is all of its samples, whatever the number of passes and processes that it takes: the loss is the mean over its answer
tokens. The random numbers of a pass (dropout) follow from seed, step and the pass' place in the step. So a step can be done
again: by another attempt that goes on from a checkpoint, or in smaller passes when the memory did not do.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pocketvlm.errors import UserError
from pocketvlm.run_file import Phase
from pocketvlm.stages.training.batches import Order, micro_batches
from pocketvlm.stages.training.features import Features
from pocketvlm.stages.training.learner import Learner
from pocketvlm.stages.training.team import Team
from pocketvlm.student.families import Family


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


@dataclass(frozen=True)
class Rules:
    """What a step goes by."""

    seed: tuple[int, ...]
    max_grad_norm: float
    factor: Callable[[int], float]
    """Of the rates, by step."""
    halved: Callable[[int], None] = lambda size: None
    """Told the new size of a pass when the memory did not do for the old one."""


class Loop:
    """The steps of a phase, on this process' share of each."""

    def __init__(
        self, learner: Learner, groups: list[dict[str, Any]], features: Features, order: Order, team: Team, rules: Rules, *,
        micro_batch_size: int,
    ) -> None:  # fmt: skip
        self.learner, self.micro_batch_size = learner, micro_batch_size
        self._features, self._order, self._team, self._rules = features, order, team, rules
        self._rates = [group["lr"] for group in groups]
        self._parameters = [parameter for group in groups for parameter in group["params"]]
        # The fused kernel is one pass over memory instead of a dozen.
        self.optimiser = torch.optim.AdamW(groups, fused=True)
        self._losses: list[Tensor] = []
        self.rate = 0.0
        """The highest of the parts' rates at the last step."""

    def step(self, number: int) -> None:
        """The step with this number, counted from 1. Raises UserError when not even a single sample fits into memory."""
        self.learner.train()
        samples = self._order.of_step(number)
        while (loss := self._passes(number, samples)) is None:
            self._halve(len(samples))
        self._team.add_gradients(self._parameters)
        torch.nn.utils.clip_grad_norm_(self._parameters, self._rules.max_grad_norm)
        for group, rate in zip(self.optimiser.param_groups, self._rates, strict=True):
            group["lr"] = rate * self._rules.factor(number)
        self._update()
        self.rate = max(group["lr"] for group in self.optimiser.param_groups)
        self._losses.append(loss)

    def take_losses(self) -> list[float]:
        """Mean losses (nats a token) of the steps since the last call. One wait for the device for all of them."""
        if not self._losses:
            return []
        own = torch.stack(self._losses).tolist()
        self._losses.clear()
        return [float(sum(shares)) for shares in zip(*self._team.gather(own), strict=True)]

    def _passes(self, number: int, samples: Sequence[int]) -> Tensor | None:
        """Gradients of this process' share, and its part of the loss. None: in some process the memory did not do."""
        self.optimiser.zero_grad(set_to_none=True)
        tokens = self._features.answer_tokens(samples)
        shares = list(enumerate(micro_batches(samples, self.micro_batch_size)))
        loss, full = torch.zeros((), device=self._features.device), False
        try:
            for place, chunk in self._team.share(shares) or [(len(shares), [])]:
                torch.manual_seed(int(np.random.SeedSequence([*self._rules.seed, number, place]).generate_state(1)[0]))
                part = self.learner(**(self._features.batch(chunk) if chunk else self._features.nothing())) / tokens
                part.backward()
                loss += part.detach()
        except torch.OutOfMemoryError:
            full = True
        (full,) = self._team.any(full)
        return None if full else loss

    def _update(self) -> None:
        try:
            self.optimiser.step()
        except torch.OutOfMemoryError as error:
            raise UserError("run.trainer: the optimiser's two numbers for each weight that learns do not fit into the memory of "
                            "the device; use method: lora or fewer parts in train, or a larger device") from error  # fmt: skip

    def _halve(self, samples: int) -> None:
        size = min(self.micro_batch_size, samples)
        if size == 1:
            raise UserError("run.trainer: a single sample does not fit into the memory of the device; set "
                            "gradient_checkpointing: true, train fewer parts or by method: lora, or use a larger one")
        self.micro_batch_size = -(-size // 2)
        self.optimiser.zero_grad(set_to_none=True)
        if self._features.device.type == "cuda":
            torch.cuda.empty_cache()
        self._rules.halved(self.micro_batch_size)
