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

from pocketvlm.artifacts.release import Release
from pocketvlm.llamacpp.server import Completion, LlamaServer, Step
from pocketvlm.llamacpp.toolchain import Toolchain
from pocketvlm.student.families import MEDIA
from pocketvlm.student.grammar import AllowedAnswers
from pocketvlm.student.prompt import answer_lead
from pocketvlm.student.tasks import TaskKind, kind_of

TOP = 128
"""Log-probabilities asked of each step of a closed answer: 10 ms an answer on the tiny student, against 22 ms for 512."""
TOP_OF_WRITTEN = 24
"""The same where answers are written out: dozens of steps, of which one is looked at in the end."""
ANY_CHARACTER = "root ::= [ -~]+\n"
"""A grammar under which some token is always written: of an end token or half a character the server returns no numbers."""
SMALL_PAIR_BYTES = 64_000_000
"""Below this, one thread: a step takes microseconds, and threads that spin while they wait for each other then cost
more than they give (on two busy cores one thread answers in 10 ms, two took minutes for what one did in seconds)."""
NORMAL_TOKEN = 1
"""llama.cpp's token type of plain text."""


Choices = Sequence[Sequence[float]]
"""Of one answer: for each generated token the log-probabilities (nats) of all tokens allowed there, the chosen one first."""


def confidence(choices: Choices, temperature: float = 1.0) -> float:
    """Probability of what was chosen: a softmax over the tokens of each step, log-probabilities divided by `temperature` first.

    Which steps these are depends on the task. Where a class is chosen: those at the place of choice until the class is decided,
    over the tokens that may stand there, so that it is the probability of the class among all classes (the definition of
    student/scoring.py). Where fields are written: the step at which the answer's chosen token was least likely, over the
    tokens that the server returned for it; one wrong token makes a wrong answer. 0 for an answer without such a step.
    """
    if not choices:
        return 0.0
    total = 0.0
    for step in choices:
        scaled = [value / temperature for value in step]
        top = max(scaled)
        total += scaled[0] - top - math.log(sum(math.exp(value - top) for value in scaled))
    return math.exp(total)


@dataclass(frozen=True)
class Reply:
    """One answer of a pair."""

    label: str | None
    """What it says, as `Said.label`; None for what is no answer of the task."""
    reason: str | None
    text: str
    """As it was written, the lead included."""
    choices: list[list[float]]
    """As `Choices`."""
    prompt_tokens: int
    prompt_ms: float
    answer_ms: float
    answer_tokens: int
    """With the end token."""
    stopped: str
    """`limit`: it was cut off."""

    def confidence(self, temperature: float = 1.0) -> float:
        """See `confidence`."""
        return confidence(self.choices, temperature)


@dataclass(frozen=True)
class Question:
    """What is sent with every image: the bytes of prompt.txt and grammar.gbnf; and what the answers mean."""

    prompt: str
    grammar: str
    kind: TaskKind
    max_new_tokens: int

    @property
    def lead(self) -> str:
        """What stands before an answer."""
        return answer_lead(self.prompt)


def released_question(folder: Path, release: Release) -> Question:
    """What is sent with every image, from the files of a release in `folder`."""
    prompt, grammar = ((folder / name).read_bytes().decode() for name in ("prompt.txt", "grammar.gbnf"))
    return Question(prompt, grammar, kind_of(release.asked()), int(release.sampling["max_new_tokens"]))


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
        self._question, self._choice = question, question.kind.choice(question.lead)
        self._allowed = AllowedAnswers(self._choice.texts, vocabulary, []) if self._choice else None
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

    @property
    def lead(self) -> str:
        """What stands before an answer."""
        return self._question.lead

    def text_ids(self) -> list[list[int]]:
        """Ids of the prompt's text before and after the image, as the server makes them."""
        return [self.ids(text) for text in self._question.prompt.split(MEDIA)]

    def ids(self, text: str) -> list[int]:
        """Ids of a text, as the server makes them."""
        return self._server.tokenize(text) if text else []

    def ask(self, image: bytes) -> Reply:
        """The greedy answer to an image (PNG or JPEG bytes), inside the grammar. Raises ToolError."""
        top = TOP if self._question.kind.closed else TOP_OF_WRITTEN
        done = self._complete(image, self._question.max_new_tokens, min(top, self._all_tokens))
        return self._reply(done, list(self._choices(done.steps)))

    def ask_freely(self, image: bytes) -> Reply:
        """The greedy answer without the grammar and without a confidence. Raises ToolError."""
        done = self._server.complete(self._question.prompt, image, grammar=None, max_new_tokens=self._question.max_new_tokens)
        return self._reply(done, [])

    def first_step(self, image: bytes) -> dict[int, float]:
        """Token id -> log-probability (nats, whole vocabulary) of each token allowed where a closed answer is first chosen."""
        assert self._allowed is not None and self._question.kind.closed, "an open answer begins with any token"
        written, steps = b"", 0
        while len(following := self._allowed.following(written)) == 1:
            (written,) = following.values()
            steps += 1
        logprobs = self._complete(image, steps + 1, self._all_tokens).steps[steps].logprobs
        return {token: logprobs[token] for token in following}

    def next_step(self, image: bytes, after: str, *, least_nats: float) -> dict[int, float]:
        """Token id -> log-probability, down to `least_nats`, of the tokens that may come after prompt and `after`."""
        done = self._server.complete(
            self._question.prompt + after, image, grammar=ANY_CHARACTER, max_new_tokens=1, top=self._all_tokens
        )
        return {token: value for token, value in done.steps[0].logprobs.items() if value >= least_nats}

    def _complete(self, image: bytes, tokens: int, top: int) -> Completion:
        return self._server.complete(self._question.prompt, image, grammar=self._question.grammar, max_new_tokens=tokens, top=top)

    def _choices(self, steps: Sequence[Step]) -> Iterable[list[float]]:
        if self._choice is None or self._allowed is None:
            return least_sure(steps)
        return read_choices(steps_after(steps, self._choice.after), self._allowed)

    def _reply(self, done: Completion, choices: list[list[float]]) -> Reply:
        said = self._question.kind.read(done.text.removeprefix(self._question.lead))
        return Reply(
            said.label if said else None, said.reason if said else None, done.text, choices, done.prompt_tokens, done.prompt_ms,
            done.answer_ms, done.answer_tokens, done.stopped,
        )  # fmt: skip


def steps_after(steps: Sequence[Step], text: str) -> Sequence[Step]:
    """The steps from where what is written ends with `text` for the first time; none if it never does."""
    written, wanted = b"", text.encode()
    for place, step in enumerate(steps):
        if written.endswith(wanted):
            return steps[place:]
        written += step.piece
    return []


def least_sure(steps: Sequence[Step]) -> list[list[float]]:
    """As one choice: the step whose token was least probable among those that the server returned, the chosen one first."""
    return min(([_step(step, [t for t in step.logprobs if t != step.token_id])] for step in steps), key=confidence, default=[])


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
        yield _step(step, [token for token in sorted(following) if token != step.token_id])
        written = following[step.token_id]


def _step(step: Step, others: Iterable[int]) -> list[float]:
    floor = min(step.logprobs.values())
    return [step.logprobs.get(token, floor) for token in (step.token_id, *others)]
