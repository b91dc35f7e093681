"""Images and their labels."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from pocketvlm.run_file.block import Block
from pocketvlm.run_file.source import Source
from pocketvlm.run_file.task import Task


class Price(Block):
    """What the teacher's tokens cost, in US dollars for a million. Cost is counted from the usage that the server reports."""

    input_usd: float = Field(ge=0)
    """Prompt tokens, those of images included."""
    output_usd: float = Field(ge=0)
    """Answer tokens."""
    cached_input_usd: float | None = Field(default=None, ge=0)
    """Prompt tokens that the server had cached; default: as `input_usd`."""
    batch_share: float = Field(default=0.5, ge=0, le=1)
    """Share of these prices that a batch costs."""


class Teacher(Block):
    """A model that labels images, behind any OpenAI-compatible endpoint."""

    model: str
    """Name at the endpoint, for example `gpt-4o`."""
    base_url: str | None = None
    """The endpoint, for example `http://vllm:8000/v1`; default: OpenAI's."""
    way: Literal["live", "batch"] = "live"
    """`live`: one call for each answer, many at once. `batch`: files of calls, answered within a day at half the price."""
    system_prompt: str | None = None
    """A Jinja file instead of PocketVLM's own, relative to the run file."""
    user_prompt: str | None = None
    """The same for the text beside the image."""
    image_px: int = Field(default=768, ge=32, le=4096)
    """Longest side of the JPEG that the teacher sees; smaller images are sent as they are."""
    detail: Literal["auto", "low", "high"] = "auto"
    """How closely the teacher looks; `low` costs least."""
    votes: int = Field(default=1, ge=1, le=15)
    """Answers for each image; the commonest label wins."""
    temperature: float | None = Field(default=None, ge=0, le=2)
    """Default: the server's own. Votes need one above 0."""
    seed: int | None = None
    """Sent with each call, plus the number of the vote; default: none."""
    max_answer_tokens: int = Field(default=800, ge=16)
    """A longer answer is cut off, paid for, and quarantined."""
    structure: Literal["auto", "json_schema", "json_object", "none"] = "auto"
    """How the server is asked for JSON. `auto`: a strict schema, or what the server takes of the others. Answers are
    checked in any case."""
    price: Price | None = None
    """What it costs; without it, cost is not known and `max_cost_usd` cannot be set."""
    in_flight: int = Field(default=64, ge=1, le=1024)
    """Most calls at once. Fewer, where the server's quota allows no more."""
    requests_per_minute: int | None = Field(default=None, ge=1)
    """Quota to keep to, where the server does not say it in its headers."""
    tokens_per_minute: int | None = Field(default=None, ge=1)
    """The same for tokens."""
    timeout_s: float = Field(default=60, gt=0)
    """Longest time of one call."""
    deadline_s: float = Field(default=900, gt=0)
    """Longest time of all tries for one answer, waiting for quota not counted; then the run ends, to be started again."""
    batch_bytes: int = Field(default=150_000_000, ge=1_000_000, le=200_000_000)
    """Most bytes of a batch file."""
    batch_requests: int = Field(default=10_000, ge=1, le=50_000)
    """Most calls of a batch file."""
    batch_poll_s: float = Field(default=30, gt=0)
    """Time between two looks at a batch."""

    @field_validator("base_url")
    @classmethod
    def _no_password(cls, url: str | None) -> str | None:
        if url is not None and "@" in url.partition("://")[2].partition("/")[0]:
            raise ValueError("holds a user or password, which would be written into the store; put the key into OPENAI_API_KEY")
        return url

    def idle(self) -> dict[str, str]:
        live = ("in_flight", "requests_per_minute", "tokens_per_minute")
        batch = ("batch_bytes", "batch_requests", "batch_poll_s")
        alike = {"votes": "at temperature 0 all answers are alike; remove one of the two"}
        idle = alike if self.votes > 1 and self.temperature == 0 else {}
        if self.way == "batch":
            return idle | dict.fromkeys(live, "only way: live has it; remove it")
        return idle | dict.fromkeys(batch, "only way: batch has it; remove it")


class Split(Block):
    """Shares of train, validation and test; they add up to 1."""

    train: float = Field(default=0.7, gt=0, lt=1)
    """Share that trains."""
    validation: float = Field(default=0.1, gt=0, lt=1)
    """Share that chooses the best checkpoint."""
    test: float = Field(default=0.2, gt=0, lt=1)
    """Share that is only ever measured."""
    seed: int = 0
    """Another seed, another split."""

    @model_validator(mode="after")
    def _adds_up(self) -> Self:
        total = self.train + self.validation + self.test
        if abs(total - 1) > 1e-6:
            raise ValueError(f"train + validation + test is {total:g}; it must be 1")
        return self


class Labeller(Block):
    """Where images and labels come from."""

    source: Source
    """One source; `kind` chooses it."""
    teacher: Teacher | None = None
    """The labelling model; without one the source's labels are used."""
    second_teacher: Teacher | None = None
    """Another model that is asked as well. Its answers vote beside the first one's, and the report compares the two."""
    min_confidence: float | None = Field(default=None, ge=0, le=1)
    """Quarantine images whose label has a lower confidence: the mean of the teacher's answers for it, or what the source's record
    says."""
    min_agreement: float | None = Field(default=None, gt=0, le=1)
    """Quarantine images whose label has a smaller share of the votes."""
    per_class: int | None = Field(default=None, ge=3)
    """Most images of a class: the first ones. More of the source is looked at until every class has them, or until the source,
    `max_images` or `max_cost_usd` ends."""
    balance: float | None = Field(default=None, ge=1)
    """The largest class has at most this many times the images of the smallest; the others are left out."""
    max_images: int | None = Field(default=None, ge=10)
    """Images of the source that are looked at, at most."""
    max_cost_usd: float | None = Field(default=None, gt=0)
    """What all answers for this dataset may cost, with earlier tries. It is passed by the calls in flight at most."""
    corrections: str | None = None
    """A file that `pocketvlm review` saved, or Label Studio's export, relative to the run file. A person's word wins."""
    split: Split = Split()
    """Train, validation and test."""
    near_copies: bool = True
    """Keep near-copies of one image (resized, recompressed, mirrored, or with up to 8 % cut off a side) on one side of the split.
    Only those that are neither mirrored nor cut are quarantined when their labels differ."""
    max_pixels: int = Field(default=50_000_000, ge=1)
    """Images of more pixels are quarantined, undecoded."""

    @property
    def teachers(self) -> list[Teacher]:
        """Those that are asked, the first one first."""
        return [teacher for teacher in (self.teacher, self.second_teacher) if teacher is not None]

    def idle(self) -> dict[str, str]:
        if self.teacher is not None:
            alone = self.teacher.votes == 1 and self.second_teacher is None
            return {"min_agreement": "one vote always agrees; remove it, or set teacher.votes or second_teacher"} if alone else {}
        why = "there is no teacher; remove it, or set teacher"
        idle = dict.fromkeys(("second_teacher", "min_agreement", "max_cost_usd"), why)
        if self.source.kind != "records":
            idle["min_confidence"] = f"images of source {self.source.kind} have no confidence; remove it"
        return idle

    def unfit(self, task: Task) -> Iterator[tuple[str, str]]:
        """Keys that are set and mean nothing to the task, or that it needs, and what to do about each."""
        no_classes, source = "only kind: classify has classes; remove it", self.source
        of_source = {"class_folders": no_classes, "class_names": no_classes, "categories": no_classes}
        if task.kind == "extract":
            own = {key: no_classes for key in ("per_class", "balance") if getattr(self, key) is not None}
            if self.teacher is None and source.kind not in ("records", "hub"):
                own["teacher"] = f"images of source {source.kind} have no fields; set it, or use source records or hub"
            yield from own.items()
        else:
            of_source = {"field_columns": "only kind: extract has fields; remove it"}
            reasons = task.answer == "label" or task.reasons or self.teacher is not None or source.kind == "records"
            if not reasons:
                yield "teacher", "answer: reasoning has to be given reasons; set it, or templates in task.reasons"
        yield from ((f"source.{key}", why) for key, why in of_source.items() if getattr(source, key, None))

    @model_validator(mode="after")
    def _cost_is_known(self) -> Self:
        for key in ("teacher", "second_teacher"):
            teacher = getattr(self, key)
            if self.max_cost_usd is not None and teacher is not None and teacher.price is None:
                raise ValueError(f"max_cost_usd: the price of {teacher.model} is not known; set {key}.price")
        return self
