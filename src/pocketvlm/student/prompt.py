"""The question as the phone asks it: exact bytes, exact token ids, the answer and its end. No torch.

`prompt.txt` of a release holds the bytes with llama.cpp's media marker where the image goes; which bytes, the family's
template or the run file's own decides (student/families/).
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from pocketvlm.errors import UserError
from pocketvlm.run_file import Task
from pocketvlm.student.families import MEDIA, Geometry

IGNORE = -100
"""Label of positions without loss (torch's convention)."""


class Tokenizer(Protocol):
    """What is used of a Hugging Face tokenizer."""

    name_or_path: str

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]: ...
    def convert_tokens_to_ids(self, tokens: str) -> Any: ...


def answer_lead(prompt: str) -> str:
    """What stands between the prompt and the answer: a space, unless the prompt ends in white space already."""
    return "" if prompt[-1:].isspace() else " "


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
    """Turns prompt, image layout and answer into the ids that the pinned llama.cpp makes of them.

    llama.cpp tokenises the text before and after the image apart from each other and puts the image's own tokens
    between them (tools/mtmd/mtmd.cpp); so does this.
    """

    def __init__(self, tokenizer: Tokenizer, geometry: Geometry, task: Task) -> None:
        """Raises UserError when the prompt has not exactly one marker or the vocabulary lacks a token of the layout."""
        self.tokenizer, self._geometry, self._task = tokenizer, geometry, task
        template = geometry.family.template
        self.shipped = template.of(task)
        """The bytes of `prompt.txt`."""
        self._texts: dict[str, tuple[list[int], list[int]]] = {}
        """Prompt -> ids before and after its image: thousands of images share a few prompts."""
        self._images: dict[Hashable, list[int]] = {}
        self._tokens: dict[str, int] = {}
        for token in template.tokens:
            self._token(token)
        self._bos = [] if template.bos is None else [self._token(template.bos)]
        self._around(self.shipped)
        self.image_id, self.end_id = self._token(geometry.family.image_token), self._token(template.end)

    def _around(self, prompt: str) -> tuple[list[int], list[int]]:
        if prompt not in self._texts:
            before, marker, after = prompt.partition(MEDIA)
            if not marker or MEDIA in after:
                raise UserError(f"run.task.question: the prompt must hold {MEDIA} exactly once, where the image goes; correct it")
            self._texts[prompt] = [*self._bos, *self._ids(before)], self._ids(after)
        return self._texts[prompt]

    def _ids(self, text: str) -> list[int]:
        return list(self.tokenizer.encode(text, add_special_tokens=False))

    def _token(self, text: str) -> int:
        """The one id of a text. Special or not, it must be a single token."""
        if text not in self._tokens:
            ids = self._ids(text)
            if len(ids) != 1:
                name = self.tokenizer.name_or_path or "this student"
                raise UserError(f"run.student.model: the tokenizer of {name} has not {text!r} as one token, which the prompt of "
                                f"{self._geometry.family.name} needs; use a model with that family's vocabulary")
            self._tokens[text] = ids[0]
        return self._tokens[text]

    def image(self, layout: Hashable) -> list[int]:
        """Ids of an image."""
        if layout not in self._images:
            tokens = self._geometry.family.image_tokens(self._geometry, layout)
            self._images[layout] = [self._token(token) for token in tokens]
        return self._images[layout]

    def text_ids(self) -> list[list[int]]:
        """Ids of the shipped prompt's text before and after the image."""
        return [list(ids) for ids in self._around(self.shipped)]

    def prompt(self, layout: Hashable, question: str | None = None) -> list[int]:
        """ids_S of the whole prompt, as llama-server counts them. `question`: another than the shipped one."""
        before, after = self._around(self._text(question))
        return [*before, *self.image(layout), *after]

    def _text(self, question: str | None) -> str:
        return self.shipped if question is None else self._geometry.family.template.of(self._task, question)

    def answer(self, text: str) -> list[int]:
        """Ids of an answer (as the dataset has it) with its end token."""
        return [*self._ids(answer_lead(self.shipped) + text), self.end_id]

    def sample(self, layout: Hashable, answer: str, question: str | None = None) -> Sample:
        """A training sample; the loss sees the answer and its end token only. `question` as in `prompt`."""
        prompt, target = self.prompt(layout, question), self.answer(answer)
        return Sample([*prompt, *target], [IGNORE] * len(prompt) + target)


def pad(samples: Sequence[Sample], pad_id: int) -> tuple[list[list[int]], list[list[int]]]:
    """ids_BS and labels_BS, filled up on the right; under causal attention the filling is never looked at."""
    longest = max(len(sample.ids) for sample in samples)
    ids = [sample.ids + [pad_id] * (longest - len(sample.ids)) for sample in samples]
    labels = [sample.labels + [IGNORE] * (longest - len(sample.labels)) for sample in samples]
    return ids, labels
