"""Validation as the phone answers, on the whole validation split or, where that would take too long, on a share of it.

How an answer is found right depends on the kind of task, and so a `Judge` is chosen by it; the loss is that of all right answers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from pocketvlm.artifacts.checkpoint_layout import Validation
from pocketvlm.errors import UserError
from pocketvlm.stages.training.features import Features
from pocketvlm.stages.training.learner import Learner
from pocketvlm.stages.training.team import Team
from pocketvlm.student.generation import generate
from pocketvlm.student.grammar import AllowedAnswers
from pocketvlm.student.prompt import IGNORE, PromptEncoder, answer_lead
from pocketvlm.student.scoring import score
from pocketvlm.student.tasks import TaskKind

IMAGES_AT_ONCE = 32
WRITTEN_IMAGES = 96
"""Reasons are written out token by token: some 60 times the work of one pass. 96 images tell 90 % from 80 %."""


class Judge(Protocol):
    """Finds out how many images are answered rightly."""

    images: list[int]
    """Those that it looks at."""

    def __call__(self, learner: Learner, numbers: Sequence[int], features_FTC: Tensor) -> int:
        """Right answers among some of `images`, whose features these are."""


class Scored:
    """A closed set of answers: greedy inside the grammar."""

    def __init__(self, features: Features, encoder: PromptEncoder, kind: TaskKind) -> None:
        choice = kind.choice(answer_lead(encoder.shipped))
        assert kind.closed and choice is not None, "another judge is for open answers"
        tokenizer: Any = encoder.tokenizer
        self._features, self._encoder = features, encoder
        self._allowed = AllowedAnswers(choice.texts, tokenizer.get_vocab(), tokenizer.all_special_ids)
        self._right = [kind.classes.index(label) for label in features.samples.labels]
        self.images = list(range(len(self._right)))

    def __call__(self, learner: Learner, numbers: Sequence[int], features_FTC: Tensor) -> int:
        images = self._features.encoded(numbers, features_FTC)
        answers = score(self._features.family, learner.student, self._encoder, self._allowed, images, batch_size=IMAGES_AT_ONCE)
        return sum(answer.index == self._right[n] for n, answer in zip(numbers, answers, strict=True))


class Forced:
    """Long answers of one right wording: every token of it is the likeliest after those before it.

    One pass tells exactly whether free greedy generation would write that answer and end it.
    """

    def __init__(self, features: Features) -> None:
        self._features = features
        self.images = list(range(len(features.samples.labels)))

    def __call__(self, learner: Learner, numbers: Sequence[int], features_FTC: Tensor) -> int:
        text = self._features.text(numbers)
        return int(learner.foreseen(**text, features_FTC=features_FTC).sum())


class Written:
    """Answers of many right wordings: written freely and greedily, and read."""

    def __init__(self, features: Features, encoder: PromptEncoder, kind: TaskKind, max_new_tokens: int) -> None:
        self._features, self._encoder, self._kind, self._max_new_tokens = features, encoder, kind, max_new_tokens
        total = len(features.samples.labels)
        # Evenly through the split: it may be sorted by class.
        self.images = sorted({place * total // min(total, WRITTEN_IMAGES) for place in range(min(total, WRITTEN_IMAGES))})

    def __call__(self, learner: Learner, numbers: Sequence[int], features_FTC: Tensor) -> int:
        images = self._features.encoded(numbers, features_FTC)
        answers = generate(self._features.family, learner.student, self._encoder, images, max_new_tokens=self._max_new_tokens,
                           batch_size=IMAGES_AT_ONCE)  # fmt: skip
        tokenizer: Any = self._encoder.tokenizer
        lead = answer_lead(self._encoder.shipped)
        right = 0
        for number, answer in zip(numbers, answers, strict=True):
            said = self._kind.read(tokenizer.decode(answer.ids).removeprefix(lead)) if answer.ended else None
            right += said is not None and said.label == self._features.samples.labels[number]
        return right


def judge_of(features: Features, encoder: PromptEncoder, kind: TaskKind, max_new_tokens: int) -> Judge:
    """The judge of a kind of task."""
    if kind.closed:
        return Scored(features, encoder, kind)
    return Written(features, encoder, kind, max_new_tokens) if kind.classes else Forced(features)


class Validator:
    """Validates a learner. `halved` is told how many images are looked at together where the memory did not do for more."""

    def __init__(
        self, features: Features, judge: Judge, team: Team, halved: Callable[[int], None] = lambda images: None
    ) -> None:
        self._features, self._judge, self._team, self._halved = features, judge, team, halved
        self._judged, self._at_once = set(judge.images), IMAGES_AT_ONCE
        assert len(features.samples) == len(features.samples.labels), "validation asks the shipped question only"
        self._tokens = int((features.samples.labels_MS != IGNORE).sum())

    @torch.no_grad()
    def __call__(self, learner: Learner, step: int, *, stopped: Callable[[], bool]) -> Validation | None:
        """Accuracy of the answers, and the mean loss of the right ones. Leaves the learner in eval mode.

        `stopped` is asked every 32 images; None if it says so in any process of the team, which shares the images. Raises
        UserError when not even a single image fits into memory.
        """
        learner.eval()
        total = len(self._features.samples)
        pieces = [range(start, min(start + IMAGES_AT_ONCE, total)) for start in range(0, total, IMAGES_AT_ONCE)]
        found: dict[int, tuple[int, float]] = {}
        for numbers in self._team.share(pieces):
            if stopped():
                break
            while (piece := self._piece(learner, numbers)) is None:
                self._halve()
            found[numbers.start] = piece
        # In the order of the images: the same sum, to the bit, however many processes there are.
        everything = dict(sorted(item for part in self._team.gather(found) for item in part.items()))
        if len(everything) < len(pieces):
            return None
        return Validation(step=step, accuracy=sum(right for right, _ in everything.values()) / len(self._judged),
                          loss=sum(loss for _, loss in everything.values()) / self._tokens)  # fmt: skip

    def _piece(self, learner: Learner, numbers: range) -> tuple[int, float] | None:
        """Right answers and the sum of the losses. None: the memory did not do."""
        try:
            parts = [self._look(learner, numbers[at : at + self._at_once]) for at in range(0, len(numbers), self._at_once)]
        except torch.OutOfMemoryError:
            return None
        return sum(right for right, _ in parts), sum(loss for _, loss in parts)

    def _look(self, learner: Learner, numbers: range) -> tuple[int, float]:
        with learner.arithmetic():
            features_FTC = self._features.of(learner.student, numbers)
            chosen = [number for number in numbers if number in self._judged]
            rows_FTC = self._features.rows_of(chosen, numbers, features_FTC)
            right = self._judge(learner, chosen, rows_FTC) if chosen else 0
        return right, float(learner(**self._features.text(numbers), features_FTC=features_FTC))

    def _halve(self) -> None:
        if self._at_once == 1:
            raise UserError("run.trainer: a single image of validation does not fit into the memory of the device; use another")
        self._at_once //= 2
        if self._features.device.type == "cuda":
            torch.cuda.empty_cache()
        self._halved(self._at_once)
