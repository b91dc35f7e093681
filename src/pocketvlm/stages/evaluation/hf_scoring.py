"""The same images by transformers: the merged model in float32 on the CPU.

That is the reference that every GGUF is compared with: a GPU's convolutions use TF32 unless told not to, which alone is as
large as the differences looked for. Where answers are few, each image is one forward pass, and the answer is the greedy one
inside the grammar; where they are written, the model writes greedily and freely.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from PIL import Image

from pocketvlm.run_file import Device, Task
from pocketvlm.stages.evaluation.parity import LEAST_NATS
from pocketvlm.stages.sharing import dealt
from pocketvlm.student import generation, scoring
from pocketvlm.student.checkpoint import load_model
from pocketvlm.student.families import MEDIA, read_geometry
from pocketvlm.student.grammar import AllowedAnswers
from pocketvlm.student.processor_files import load_tokenizer
from pocketvlm.student.prompt import PromptEncoder, answer_lead
from pocketvlm.student.tasks import kind_of

BATCH = 16
"""Images held at once: their features are 3 MB a tile at full size. A share takes whole batches, because the low bits of a
sum depend on how many are summed at once."""


@dataclass(frozen=True)
class HfAnswer:
    """What transformers says of one image."""

    label: str | None
    text: str
    """Without the lead."""
    confidence: float | None = None
    """As `phone.confidence`; None where the answer was written freely."""
    tokens: int | None = None
    """Written ones, the end token included."""
    first_step: dict[int, float] = field(default_factory=dict, repr=False)
    """Log-probabilities (nats) of the tokens that parity compares; of written answers only for the parity images."""


@dataclass(frozen=True)
class HfAnswers:
    """What transformers says of the images, in order."""

    merged: list[HfAnswer] = field(default_factory=list)
    prompt_tokens: list[int] = field(default_factory=list)
    """Tokens of each image's prompt in the student's layout."""
    text_ids: list[list[int]] = field(default_factory=list)
    """Ids of the prompt's text before and after the image, as the student was trained on them; and of the latter with what of
    an answer stands before the token that parity compares."""


class HfStudent:
    """A checkpoint folder, loaded for answering."""

    def __init__(self, folder: Path, task: Task, device: Device) -> None:
        tokenizer, geometry = load_tokenizer(folder), read_geometry(folder)
        self.tokenizer: Any = tokenizer
        self.model: Any = load_model(folder)
        self.family, self.kind = geometry.family, kind_of(task)
        self.encoder = PromptEncoder(tokenizer, geometry, task)
        self.eye = self.family.eye(geometry, device, folder)
        self._limit, self._lead = device.max_new_tokens, answer_lead(self.encoder.shipped)
        choice = self.kind.choice(self._lead) if self.kind.closed else None
        self.allowed = AllowedAnswers(choice.texts, tokenizer.get_vocab(), tokenizer.all_special_ids) if choice else None

    def encode(self, images: Iterable[Image.Image]) -> list[scoring.EncodedImage]:
        """Prompt ids and vision features."""
        return list(scoring.encode_images(self.family, self.model, self.encoder, self.eye, images, batch_size=BATCH))

    def answer(self, images: Sequence[scoring.EncodedImage]) -> list[HfAnswer]:
        """The greedy answers."""
        if self.allowed is None:
            return self._write(images)
        names = self.kind.classes
        answers = scoring.score(self.family, self.model, self.encoder, self.allowed, images, batch_size=BATCH)
        return [HfAnswer(names[a.index], names[a.index], a.confidence, None, a.first_step) for a in answers]

    def _write(self, images: Sequence[scoring.EncodedImage]) -> list[HfAnswer]:
        written = generation.generate(
            self.family, self.model, self.encoder, images, max_new_tokens=self._limit, batch_size=BATCH
        )
        found = []
        for answer in written:
            text = self.tokenizer.decode(answer.ids, clean_up_tokenization_spaces=False).removeprefix(self._lead)
            said = self.kind.read(text)
            found.append(HfAnswer(said.label if said else None, text, tokens=len(answer.ids) + answer.ended))
        return found

    def next_step(self, image: scoring.EncodedImage, after: str) -> dict[int, float]:
        """Log-probabilities of the tokens that may come after the prompt and the text `after`."""
        images = [image]
        (step,) = generation.next_tokens(self.family, self.model, self.encoder, images, after=after, least_nats=LEAST_NATS)
        return step

    def text_ids(self, parity_after: str | None) -> list[list[int]]:
        """Ids of the prompt's text before and after the image; and of the latter with `parity_after`."""
        before, after = ([*self.tokenizer.encode(t, add_special_tokens=False)] for t in self.encoder.shipped.split(MEDIA))
        more = [*after, *self.tokenizer.encode(parity_after, add_special_tokens=False)] if parity_after else []
        return [before, after, *([more] if more else [])]


def ask_images(
    student: HfStudent, images: Iterable[Image.Image], *, parity: Collection[int], parity_after: str | None,
    step: Callable[[int], None],
) -> HfAnswers:  # fmt: skip
    """Answers to RGB images on the canvas. `parity` are the places of those whose next token is compared after `parity_after`."""
    answers = HfAnswers(text_ids=student.text_ids(parity_after))
    pending = iter(images)
    while chunk := list(islice(pending, BATCH)):
        encoded = student.encode(chunk)
        first = len(answers.merged)
        for place, (image, answer) in enumerate(zip(encoded, student.answer(encoded), strict=True), start=first):
            if parity_after is not None and place in parity:
                answer.first_step.update(student.next_step(image, parity_after))
            answers.merged.append(answer)
        answers.prompt_tokens.extend(len(image.prompt_ids) for image in encoded)
        step(len(answers.merged))
    return answers


def longest_prompt(folder: Path, task: Task, device: Device, sizes: Iterable[tuple[int, int]]) -> int:
    """Most tokens that the prompt takes with an image of any of these sizes (width, height), by a checkpoint's tokenizer."""
    geometry = read_geometry(folder)
    encoder, eye = PromptEncoder(load_tokenizer(folder), geometry, task), geometry.family.eye(geometry, device, folder)
    return max(len(encoder.prompt(layout)) for layout in {eye.layout(size) for size in sizes})


def parity_place(folder: Path, task: Task) -> str | None:
    """What of an answer stands before the token on which llama.cpp and transformers are compared.

    None where answers are few: the grammar says which tokens are compared. Else the part that all answers begin with, if its
    tokens after the prompt are those that it has by itself, and if not, nothing: then the very first token is compared.
    """
    opening = kind_of(task).opening()
    if opening is None:
        return None
    tokenizer, prompt = load_tokenizer(folder), read_geometry(folder).family.template.of(task)
    ends, wanted = prompt.partition(MEDIA)[2], answer_lead(prompt) + opening

    def ids(text: str) -> list[int]:
        return list(tokenizer.encode(text, add_special_tokens=False))

    return wanted if ids(ends + wanted) == ids(ends) + ids(wanted) else ""


def write_answers(path: Path, answers: HfAnswers) -> None:
    """As JSON: floats survive it exactly."""
    merged = [{**asdict(answer), "first_step": sorted(answer.first_step.items())} for answer in answers.merged]
    path.write_text(json.dumps({"merged": merged, "prompt_tokens": answers.prompt_tokens, "text_ids": answers.text_ids}))


def read_answers(path: Path) -> HfAnswers:
    """What `write_answers` wrote."""
    data: dict[str, Any] = json.loads(path.read_text())
    merged = [HfAnswer(**{**row, "first_step": dict(row["first_step"])}) for row in data["merged"]]
    return HfAnswers(merged, data["prompt_tokens"], data["text_ids"])


def join_answers(shares: Sequence[HfAnswers], total: int) -> HfAnswers:
    """The answers of all shares as one, to `total` images in their order."""
    return HfAnswers(
        dealt(total, [share.merged for share in shares], BATCH),
        dealt(total, [share.prompt_tokens for share in shares], BATCH),
        next((share.text_ids for share in shares if share.text_ids), []),
    )
