"""Validation as the phone answers: greedy inside the grammar, on the whole validation split."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from pocketvlm.artifacts.checkpoint_layout import Validation
from pocketvlm.stages.training.features import Features
from pocketvlm.stages.training.learner import Learner
from pocketvlm.student.grammar import AllowedAnswers
from pocketvlm.student.prompt import IGNORE, PromptEncoder
from pocketvlm.student.scoring import score

IMAGES_AT_ONCE = 32


class Validator:
    """Scores a learner on the validation split."""

    def __init__(
        self, features: Features, encoder: PromptEncoder, allowed: AllowedAnswers, classes: Sequence[str]
    ) -> None:
        self._features = features
        self._encoder, self._allowed = encoder, allowed
        assert len(features.samples) == len(features.samples.labels), "validation asks the shipped question only"
        self._right = [list(classes).index(label) for label in features.samples.labels]
        self._tokens = int((features.samples.labels_MS != IGNORE).sum())

    @torch.no_grad()
    def __call__(self, learner: Learner, step: int, *, stopped: Callable[[], bool]) -> Validation | None:
        """Accuracy of the answers, and the mean loss of the right ones. Leaves the learner in eval mode.

        `stopped` is asked every 32 images; None if it says so.
        """
        learner.eval()
        right, total = 0, 0.0
        for start in range(0, len(self._right), IMAGES_AT_ONCE):
            if stopped():
                return None
            numbers = range(start, min(start + IMAGES_AT_ONCE, len(self._right)))
            with learner.arithmetic():
                features_FTC = self._features.of(learner.student, numbers)
                images = self._features.encoded(numbers, features_FTC)
                answers = score(
                    learner.student, self._encoder, self._allowed, images, batch_size=IMAGES_AT_ONCE
                )
            right += sum(answer.index == self._right[n] for n, answer in zip(numbers, answers, strict=True))
            total += float(learner(**self._features.text(numbers), features_FTC=features_FTC))
        return Validation(step=step, accuracy=right / len(self._right), loss=total / self._tokens)
