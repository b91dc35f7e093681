"""The phone, as far as this machine can be one: a GGUF pair on llama-server, asked with the exact prompt bytes and grammar.

The evaluator measures with it and `verify` replays with it. No torch: the vocabulary is read from the GGUF file itself.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from pocketvlm.llamacpp.server import Completion, LlamaServer, Step
from pocketvlm.llamacpp.toolchain import Toolchain
from pocketvlm.student.grammar import AllowedAnswers
from pocketvlm.student.prompt import MEDIA

TOP = 128
"""Log-probabilities asked of each step: 10 ms an answer on the tiny student, against 22 ms for 512."""
SMALL_PAIR_BYTES = 64_000_000
"""Below this, one thread: a step takes microseconds, and threads that spin while they wait for each other then cost
more than they give (on two busy cores one thread answers in 10 ms, two took minutes for what one did in seconds)."""
NORMAL_TOKEN = 1
"""llama.cpp's token type of plain text."""


Choices = Sequence[Sequence[float]]
"""Of one answer: for each generated token the log-probabilities (nats) of all tokens allowed there, the chosen one first."""


def confidence(choices: Choices, temperature: float = 1.0) -> float:
    """Probability of the answer among those that the grammar allows: a softmax over the allowed tokens at each step.

    The same definition as in student/scoring.py; the log-probabilities are divided by `temperature` first.
    """
    total = 0.0
    for step in choices:
        scaled = [value / temperature for value in step]
        top = max(scaled)
        total += scaled[0] - top - math.log(sum(math.exp(value - top) for value in scaled))
    return math.exp(total)


@dataclass(frozen=True)
class Reply:
    """One answer of a pair."""

    index: int | None
    """Class index; None outside the classes."""
    text: str
    choices: list[list[float]]
    """As `Choices`."""
    prompt_tokens: int
    prompt_ms: float
    answer_ms: float

    def confidence(self, temperature: float = 1.0) -> float:
        """See `confidence`."""
        return confidence(self.choices, temperature)


@dataclass(frozen=True)
class Question:
    """What is sent with every image: the bytes of prompt.txt and grammar.gbnf, and their classes."""

    prompt: str
    grammar: str
    classes: Sequence[str]
    max_new_tokens: int


def pair_threads(text: Path, mmproj: Path, threads: int) -> int:
    """Threads for a pair: 1 for a small one, else `threads`."""
    return 1 if text.stat().st_size + mmproj.stat().st_size < SMALL_PAIR_BYTES else threads


def read_vocabulary(toolchain: Toolchain, text: Path) -> tuple[dict[str, int], int]:
    """Token -> id of a GGUF file's plain tokens, among which its grammar chooses; and the number of all its tokens."""
    fields = toolchain.gguf().GGUFReader(text).fields
    tokens: list[str] = fields["tokenizer.ggml.tokens"].contents()
    types: list[int] = fields["tokenizer.ggml.token_type"].contents()
    return {token: i for i, (token, kind) in enumerate(zip(tokens, types, strict=True)) if kind == NORMAL_TOKEN}, len(tokens)


SPARE_TOKENS = 256
"""Context to give a pair beyond its prompt and answer."""


class Pair:
    """A GGUF pair on a server of its own; a context manager."""

    def __init__(
        self, toolchain: Toolchain, text: Path, mmproj: Path, question: Question, *, threads: int, context_tokens: int = 4096
    ) -> None:
        vocabulary, self._all_tokens = read_vocabulary(toolchain, text)
        self._allowed = AllowedAnswers(question.classes, vocabulary, [])
        self._question = question
        self._server = LlamaServer(
            toolchain, text, mmproj, media_marker=MEDIA, context_tokens=context_tokens,
            threads=pair_threads(text, mmproj, threads),
        )  # fmt: skip

    def __enter__(self) -> Self:
        """Raises ToolError when the server does not start."""
        self._server.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._server.__exit__(kind, error, trace)

    def text_ids(self) -> list[list[int]]:
        """Ids of the prompt's text before and after the image, as the server makes them."""
        return [self._server.tokenize(text) if text else [] for text in self._question.prompt.split(MEDIA)]

    def ask(self, image: bytes) -> Reply:
        """The greedy answer to an image (PNG or JPEG bytes). Raises ToolError."""
        done = self._complete(image, self._question.max_new_tokens, min(TOP, self._all_tokens))
        index = class_index(done.text, self._question.classes)
        choices = list(read_choices(done.steps, self._allowed))
        return Reply(index, done.text, choices, done.prompt_tokens, done.prompt_ms, done.answer_ms)

    def first_step(self, image: bytes) -> dict[int, float]:
        """Token id -> log-probability (nats, whole vocabulary) of each token allowed where the answer is first chosen."""
        written, steps = b"", 0
        while len(following := self._allowed.following(written)) == 1:
            (written,) = following.values()
            steps += 1
        logprobs = self._complete(image, steps + 1, self._all_tokens).steps[steps].logprobs
        return {token: logprobs[token] for token in following}

    def _complete(self, image: bytes, tokens: int, top: int) -> Completion:
        return self._server.complete(self._question.prompt, image, grammar=self._question.grammar, max_new_tokens=tokens, top=top)


def class_index(text: str, classes: Sequence[str]) -> int | None:
    """The class that an answer names, exactly as the student writes it; None for anything else."""
    wanted = [f" {name}" for name in classes]
    return wanted.index(text) if text in wanted else None


def read_choices(steps: Iterable[Step], allowed: AllowedAnswers) -> Iterable[list[float]]:
    """For each step until the answer is decided: log-probabilities of the allowed tokens, the chosen one first.

    A token that the server did not return counts as the least probable one that it did: an upper bound, so the
    confidence is at most too low, and by no more than the mass outside the TOP tokens.
    """
    written = b""
    for step in steps:
        following = allowed.following(written)
        if step.token_id not in following or allowed.decided(written) is not None:
            return
        floor = min(step.logprobs.values())
        others = [step.logprobs.get(token, floor) for token in sorted(following) if token != step.token_id]
        yield [step.logprobs.get(step.token_id, floor), *others]
        written = following[step.token_id]
