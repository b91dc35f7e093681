"""The student as a learner: from a batch to its summed loss. Shapes as in student/forward.py."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import torch
from torch import Tensor, nn

from pocketvlm.student import forward
from pocketvlm.student.families import Family
from pocketvlm.student.prompt import IGNORE

Precision = Literal["bf16", "fp32"]


def choose_precision(asked: str, device: torch.device) -> Precision:
    """`auto` is bf16 where the device computes it natively: emulated, it is slower than fp32 and less exact."""
    if asked != "auto":
        return "bf16" if asked == "bf16" else "fp32"
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    native = torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
    return "bf16" if native else "fp32"


class Learner(nn.Module):
    """The student with its loss. What learns is fp32, what is frozen is held in the precision of the arithmetic."""

    def __init__(self, student: Any, family: Family, precision: Precision) -> None:
        super().__init__()
        self.student = student
        self._family = family
        self._precision = precision
        for parameter in student.parameters():
            if parameter.requires_grad:
                # peft makes adapters of a base of 4 bits in bf16, which loses steps below 1/256 of a weight.
                parameter.data = parameter.data.float()
            elif precision == "bf16" and parameter.is_floating_point():
                parameter.data = parameter.data.bfloat16()

    def forget_activations(self) -> None:
        """Layers compute their activations again where gradients need them, with the same random numbers."""
        self.student.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})

    def arithmetic(self) -> AbstractContextManager[Any]:
        """Autocast where the precision asks for it."""
        if self._precision == "fp32":
            return nullcontext()
        device = next(self.student.parameters()).device
        return torch.autocast(device.type, dtype=torch.bfloat16)

    @torch.no_grad()
    def foreseen(self, ids_BS: Tensor, labels: Tensor, layout: Tensor, features_FTC: Tensor) -> Tensor:
        """right_B: whether each token of the sample's answer, its end too, is the likeliest one where it stands."""
        wanted_BS = labels[:, 1:]
        where_BS = wanted_BS != IGNORE
        with self.arithmetic():
            hidden_BSD, _ = self._family.prefill(self.student, ids_BS, features_FTC[layout])
            likeliest_R = self._family.logits(self.student, hidden_BSD[:, :-1][where_BS]).argmax(dim=-1)
        wrong_BS = torch.zeros_like(where_BS)
        wrong_BS[where_BS] = likeliest_R != wanted_BS[where_BS]
        return ~wrong_BS.any(dim=1)

    def forward(
        self,
        ids_BS: Tensor,
        labels: Tensor,
        layout: Tensor,
        features_FTC: Tensor | None = None,
        tiles: Tensor | None = None,
    ) -> Tensor:
        """Sum of the cross-entropies (nats) of all answer tokens; layout has the place among F of every tile."""
        with self.arithmetic():
            if features_FTC is None:
                features_FTC = self._family.features(self.student, tiles) if tiles is not None else None
            assert features_FTC is not None, "a batch has either tiles or features"
            hidden_BSD, _ = self._family.prefill(self.student, ids_BS, features_FTC[layout])
            total, _ = forward.answer_loss(self._family, self.student, hidden_BSD, labels)
        return total
