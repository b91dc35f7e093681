"""The processes that train together: each does its share of an optimiser step, all hold the same weights and the same state.

`accelerate launch` (or `torchrun`) starts them and says who is who. Gradients go by the device's own backend; what is decided
between two steps goes by gloo, so that no GPU has to be waited for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

BUCKET_BYTES = 64 << 20
"""Gradients are added in pieces of this size: large enough for the wire, small beside the gradients themselves."""
Item = TypeVar("Item")


@dataclass(frozen=True)
class Team:
    """`rank` of `size`; the first one speaks and writes for all."""

    device: torch.device
    rank: int = 0
    size: int = 1
    control: Any = None
    """Process group of the decisions."""

    @property
    def leads(self) -> bool:
        """Whether this process writes."""
        return self.rank == 0

    def share(self, items: Sequence[Item]) -> list[Item]:
        """This process' items: every `size`-th."""
        return list(items[self.rank :: self.size])

    def any(self, *flags: bool) -> tuple[bool, ...]:
        """For each flag, whether any process raised it."""
        if self.size == 1:
            return flags
        raised = torch.tensor(flags, dtype=torch.int32)
        dist.all_reduce(raised, op=dist.ReduceOp.MAX, group=self.control)
        return tuple(bool(flag) for flag in raised.tolist())

    def gather(self, item: Item) -> list[Item]:
        """What each process has, in the order of ranks."""
        if self.size == 1:
            return [item]
        items: list[Any] = [None] * self.size
        dist.all_gather_object(items, item, group=self.control)
        return items

    def add_gradients(self, parameters: Sequence[Tensor]) -> None:
        """Every process gets the sum. All must have gradients of the same parameters."""
        if self.size == 1:
            return
        held = [parameter.grad for parameter in parameters if parameter.grad is not None]
        bucket: list[Tensor] = []
        for i, gradient in enumerate(held):
            bucket.append(gradient)
            if sum(piece.nbytes for piece in bucket) >= BUCKET_BYTES or i == len(held) - 1:
                flat = torch.cat([piece.reshape(-1) for piece in bucket])
                dist.all_reduce(flat)
                for piece, summed in zip(bucket, torch.split(flat, [piece.numel() for piece in bucket]), strict=True):
                    piece.copy_(summed.view_as(piece))
                bucket = []


def join_team() -> Team:
    """The team that this process was started in; alone, if nobody started one. On CUDA if there is any."""
    from accelerate import PartialState

    on_cuda = torch.cuda.is_available()
    state = PartialState(cpu=not on_cuda)
    if state.num_processes == 1:
        return Team(torch.device("cuda" if on_cuda else "cpu"))
    device = torch.device("cuda", state.local_process_index) if on_cuda else torch.device("cpu")
    control = dist.new_group(backend="gloo") if on_cuda else None
    return Team(device, state.process_index, state.num_processes, control)
