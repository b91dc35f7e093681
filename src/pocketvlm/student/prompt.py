"""The question as the phone asks it: exact bytes, exact token ids, the answer and its end. No torch.

The prompt is Hugging Face's chat layout of SmolVLM without the space that llama.cpp's own template would put before
the image. `prompt.txt` of a release holds these bytes with llama.cpp's media marker where the image goes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from pocketvlm.errors import UserError
from pocketvlm.run_file import Task
from pocketvlm.student.pixels import Grid

MEDIA = "<__media__>"
"""llama.cpp's marker. It is replaced before the model sees anything, and is never in training text."""
IGNORE = -100
"""Label of positions without loss (torch's convention)."""
FAKE, GLOBAL, IMAGE, END = "<fake_token_around_image>", "<global-img>", "<image>", "<end_of_utterance>"
START = "<|im_start|>"
MAX_GRID_SIDE = 6
"""The vocabulary has <row_1_col_1> to <row_6_col_6>."""


class Tokenizer(Protocol):
    """What is used of a Hugging Face tokenizer."""

    name_or_path: str

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]: ...
    def convert_tokens_to_ids(self, tokens: str) -> Any: ...


def prompt_text(task: Task) -> str:
    """The bytes of `prompt.txt`."""
    return prompt_of(task.question)


def prompt_of(question: str) -> str:
    """The same layout around any question."""
    return f"{START}User:{MEDIA}{question}{END}\nAssistant:"


def answer_text(label: str) -> str:
    """What the student writes after the prompt, without its end token."""
    return f" {label}"


@dataclass(frozen=True)
class Sample:
    """One training sample: ids_S and labels_S of equal length; labels are IGNORE outside the answer and its end."""

    ids: list[int]
    labels: list[int]

    @property
    def prompt_length(self) -> int:
        """Ids before the answer."""
        return sum(label == IGNORE for label in self.labels)


class PromptEncoder:
    """Turns prompt, image grid and answer into the ids that the pinned llama.cpp makes of them.

    llama.cpp tokenises the text before and after the image apart from each other and puts the image's own tokens
    between them (tools/mtmd/mtmd.cpp); so does this.
    """

    def __init__(self, tokenizer: Tokenizer, *, prompt: str, tokens_per_tile: int) -> None:
        """Raises UserError when the prompt has not exactly one marker or the vocabulary lacks a token of the layout."""
        self.tokenizer = tokenizer
        self.tokens_per_tile = tokens_per_tile
        self._shipped = prompt
        self._texts: dict[str, tuple[list[int], list[int]]] = {}
        """Prompt -> ids before and after its image: thousands of images share a few prompts."""
        self._around(prompt)
        self._special(START)
        self._newline, self._blank_line = self._single("\n"), self._single("\n\n")
        self._fake, self._global, self.image_id = self._special(FAKE), self._special(GLOBAL), self._special(IMAGE)
        self.end_id = self._special(END)

    def _around(self, prompt: str) -> tuple[list[int], list[int]]:
        if prompt not in self._texts:
            before, marker, after = prompt.partition(MEDIA)
            if not marker or MEDIA in after:
                raise UserError(f"run.task.question: the prompt must hold {MEDIA} exactly once, where the image goes; correct it")
            self._texts[prompt] = self._ids(before), self._ids(after)
        return self._texts[prompt]

    def _ids(self, text: str) -> list[int]:
        return list(self.tokenizer.encode(text, add_special_tokens=False))

    def _single(self, text: str) -> int:
        ids = self._ids(text)
        if len(ids) != 1:
            raise self._lacks(repr(text), "one token")
        return ids[0]

    def _special(self, token: str) -> int:
        number = self.tokenizer.convert_tokens_to_ids(token)
        if not isinstance(number, int) or self._ids(token) != [number]:
            raise self._lacks(token, "a special token")
        return number

    def _lacks(self, token: str, what: str) -> UserError:
        return UserError(f"run.student.model: the tokenizer of {self.tokenizer.name_or_path or 'this student'} has not {token} "
                         f"as {what}, which the prompt needs; use a model with SmolVLM's vocabulary")

    def image(self, cut: Grid) -> list[int]:
        """Ids of an image: every tile with its row and column, then the overview."""
        if max(cut.rows, cut.cols) > MAX_GRID_SIDE:
            raise ValueError(
                f"a grid of {cut.rows}x{cut.cols} tiles; the vocabulary ends at {MAX_GRID_SIDE}x{MAX_GRID_SIDE}"
            )
        pads = [self.image_id] * self.tokens_per_tile
        ids: list[int] = []
        for row in range(1, cut.rows + 1):
            for col in range(1, cut.cols + 1):
                ids += [self._fake, self._special(f"<row_{row}_col_{col}>"), *pads]
            if row < cut.rows:
                ids.append(self._newline)
        return [*ids, self._blank_line, self._fake, self._global, *pads, self._fake]

    def prompt(self, cut: Grid, text: str | None = None) -> list[int]:
        """ids_S of the whole prompt; equals what llama-server counts as prompt tokens.

        `text` is another prompt than the shipped one, from `prompt_of`. Raises UserError as the constructor does.
        """
        before, after = self._around(self._shipped if text is None else text)
        return [*before, *self.image(cut), *after]

    def answer(self, text: str) -> list[int]:
        """Ids of an answer with its end token."""
        return [*self._ids(text), self.end_id]

    def sample(self, cut: Grid, answer: str, text: str | None = None) -> Sample:
        """A training sample; the loss sees the answer and its end token only. `text` as in `prompt`."""
        prompt, target = self.prompt(cut, text), self.answer(answer)
        return Sample([*prompt, *target], [IGNORE] * len(prompt) + target)


def pad(samples: Sequence[Sample], pad_id: int) -> tuple[list[list[int]], list[list[int]]]:
    """ids_BS and labels_BS, filled up on the right; under causal attention the filling is never looked at."""
    longest = max(len(sample.ids) for sample in samples)
    ids = [sample.ids + [pad_id] * (longest - len(sample.ids)) for sample in samples]
    labels = [sample.labels + [IGNORE] * (longest - len(sample.labels)) for sample in samples]
    return ids, labels
