"""The module that the HF Trainer sees: the student, from a batch to its summed loss. Shapes as in student/forward.py."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import torch
from torch import Tensor, nn

from pocketvlm.stages.training.features import tower
from pocketvlm.student import forward

Precision = Literal["bf16", "fp32"]


def choose_device() -> torch.device:
    """CUDA if there is any, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


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

    accepts_loss_kwargs = True
    """Tells the HF Trainer to count the labels of the whole optimiser step."""

    def __init__(self, student: Any, image_id: int, precision: Precision) -> None:
        super().__init__()
        self.student = student
        self._image_id = image_id
        self._precision = precision
        if precision == "bf16":
            for parameter in student.parameters():
                if not parameter.requires_grad:
                    parameter.data = parameter.data.bfloat16()

    def arithmetic(self) -> AbstractContextManager[Any]:
        """Autocast where the precision asks for it."""
        if self._precision == "fp32":
            return nullcontext()
        device = next(self.student.parameters()).device
        return torch.autocast(device.type, dtype=torch.bfloat16)

    def forward(
        self,
        ids_BS: Tensor,
        labels: Tensor,
        layout: Tensor,
        features_FTC: Tensor | None = None,
        tiles_FHWC: Tensor | None = None,
    ) -> Tensor:
        """Sum of the cross-entropies (nats) of all answer tokens.

        labels are labels_BS, under the name that the HF Trainer counts; layout has the place among F of every tile.
        """
        with self.arithmetic():
            if features_FTC is None:
                features_FTC = tower(self.student, tiles_FHWC) if tiles_FHWC is not None else None
            assert features_FTC is not None, "a batch has either tiles or features"
            embeddings_BSD = forward.embed(self.student, ids_BS, features_FTC[layout], self._image_id)
            hidden_BSD = forward.hidden(self.student, embeddings_BSD)
            total, _ = forward.answer_loss(self.student, hidden_BSD, labels)
        return total
