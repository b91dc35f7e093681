"""What a teacher is asked and what it says: the nouns of this room, and the port that both ways (live, batch) fill."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from pydantic import BaseModel, ConfigDict

from pocketvlm.teacher.stats import Stats

NONE = "none"
"""What the teacher says when no class fits."""


class Usage(BaseModel):
    """Tokens as the server counted them; several calls for one answer are added up."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    input_tokens: int = 0
    cached_input_tokens: int = 0
    """Of `input_tokens`, those that the server had cached."""
    output_tokens: int = 0
    batched: bool = False
    """Billed as a batch."""


class Outcome(BaseModel):
    """The end of one question to the teacher, as the journal keeps it. Paid for, so never asked again."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    image: str
    """Sha256 of the JPEG that was sent."""
    vote: int
    """From 0."""
    kind: Literal["answer", "refused", "filtered", "cut_off", "invalid"]
    """`answer`: valid. `refused`: the teacher declined. `filtered`: its content filter did. `cut_off`: longer than
    `max_answer_tokens`. `invalid`: no valid JSON, after one repair."""
    answer: dict[str, Any] | None = None
    """Of an `answer`: what the schema of the task allows."""
    detail: str = ""
    """Of the others: why, at most 300 characters."""
    model: str = ""
    """As the server named it."""
    request_id: str = ""
    """Of the response that counted."""
    usage: Usage = Usage()
    calls: int = 1
    """Calls that were billed."""


Panel = Sequence[Sequence[Outcome]]
"""What several teachers said of one image: the outcomes of each, the first one's first. Empty ones: the money was gone."""


@dataclass(frozen=True)
class TeacherImage:
    """An image to be labelled."""

    position: int
    """In the order of the source: the budget admits images in this order."""
    sha256: str
    """Of the JPEG."""
    jpeg_bytes: int
    read: Callable[[], bytes]
    """Gives the JPEG, so that waiting images are no load on memory."""


@dataclass(frozen=True)
class Reply:
    """What a teacher said of one image: an outcome for each vote; empty if the budget did not admit it."""

    image: TeacherImage
    outcomes: Sequence[Outcome]


class Ticket(Protocol):
    """Images that a teacher was given."""

    def wait(self) -> list[Reply]:
        """The replies in the order of the images, once every outcome is journalled.

        Raises TeacherUnavailable (start again: what was answered is kept), CredentialsError or UserError.
        """

    def done_in(self, seconds: float) -> bool:
        """Whether `wait` would wait no more; waits so long for it to be so."""


class Client(Protocol):
    """One teacher. Thread-safe; used as a context manager, whose end cancels what nobody waits for any more."""

    stats: Stats

    def ask(self, images: Sequence[TeacherImage]) -> Ticket:
        """Takes images without waiting; those that the journal knows cost nothing."""

    def wait_s(self) -> float:
        """How long no call starts, because of the server's quota; 0: it is not waited for."""

    def __enter__(self) -> Client: ...
    def __exit__(self, *error: object) -> None: ...
