"""The trainer: dataset -> what each phase learnt, as artifacts/checkpoint_layout.py describes it.

The work is in stages/training/, which needs torch; this file does not, so that a finished training is found in no time.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pocketvlm.run_file import Recipe
from pocketvlm.stages.stage import Made, Work
from pocketvlm.student import base
from pocketvlm.student.tasks import kind_of

KIND = "checkpoints"
INPUTS = ("labeller",)
WITHOUT_EFFECT = {"trackers", "checkpoint_every_steps", "gradient_checkpointing"}
"""Settings that change no weight."""


def settings(recipe: Recipe, folder: Path) -> dict[str, Any]:
    """Everything that shapes the weights: training, the base, the tile budget, prompt and answers.

    What the phone may write limits the answers that validation reads; classes are scored without writing them.
    """
    kind = kind_of(recipe.task)
    return {
        "trainer": recipe.trainer.model_dump(mode="json", exclude=WITHOUT_EFFECT),
        "student": base.identity(recipe.student, folder),
        "longest_edge_px": recipe.device.longest_edge_px,
        "task": kind.settings(),
        **({} if kind.closed else {"max_new_tokens": recipe.device.max_new_tokens}),
    }


def make(work: Work) -> Made | None:
    """Trains all phases. None: another process of the same training publishes.

    Raises UserError, DataError, and Interrupted after saving.
    """
    from pocketvlm.stages.training.run import train

    return train(work)
