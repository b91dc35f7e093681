"""What an evaluation found: `metrics.json` of a report artifact. Nouns only; equal for equal runs, so without times."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

from pocketvlm.artifacts.manifest import canonical_json


class Result(BaseModel):
    """A closed, frozen block."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class ClassRow(Result):
    """One class."""

    name: str
    support: int
    """Images that bear this label."""
    precision: float
    recall: float
    f1: float


class ReliabilityBin(Result):
    """Images whose confidence lies in (low, high]."""

    low: float
    high: float
    count: int
    confidence: float
    accuracy: float


class Tokens(Result):
    """Generated tokens of an answer, the end token included."""

    median: float
    p95: int
    most: int


class Written(Result):
    """Answers that are written out: which of them can be read."""

    valid: float | None
    """Share of the images whose answer inside the grammar is one of this task; None for who was not asked with it."""
    valid_free: float
    """The same without the grammar."""
    unread: int | None
    """Answers inside the grammar that cannot be read: cut off at `max_new_tokens`, or with what the grammar cannot know to be
    none (bytes that are no text, a blank reason, a whole number beyond 2^53)."""
    unread_free: int
    """The same without the grammar, for whatever reason."""
    accuracy_free: float
    """Accuracy without the grammar."""


class ListScore(Result):
    """Lists of texts as sets, of one field: what is named against what is there."""

    precision: float
    recall: float
    f1: float
    """Micro: over the texts of all images. 1 where nothing is there and nothing named, if every answer can be read."""
    f1_macro: float
    """Mean of the images' own F1, 1 where both sets are empty; an answer that cannot be read has 0."""


class FieldRow(Result):
    """One field of `extract`. An answer that cannot be read is wrong in each."""

    name: str
    type: str
    accuracy: float
    """Share of the images whose value equals the label's; of lists, whose texts are the same in the same order."""
    list: ListScore | None = None
    """With the texts normalised: stages/evaluation/fields.py."""
    list_raw: ListScore | None = None
    """With the texts as they are."""
    similarity: float | None = None
    """Of free texts: the mean of `Metrics.similarity` over the images, in [0, 1]."""


class Measured(Result):
    """Answers of one answerer to the test images."""

    images: int
    correct: int
    """Answers whose meaning is the label's: the class, or every field."""
    accuracy: float
    interval: tuple[float, float]
    """95 %, Wilson."""
    outside: int
    """Answers that are none of this task's."""
    macro_f1: float | None = None
    """As `classes` and `confusion`: only where there are classes."""
    classes: list[ClassRow] = []
    confusion: list[list[int]] = []
    """Rows: label; columns: answer, the last one for answers outside the classes."""
    calibration_error: float | None = None
    """As `bins`: only where a class is chosen, and of answerers whose confidence is known."""
    bins: list[ReliabilityBin] = []
    tokens: Tokens | None = None
    """None for who was not asked token by token."""
    written: Written | None = None
    """None where answers are few and chosen among."""
    fields: list[FieldRow] = []
    list_f1: float | None = None
    """`f1` over the texts of all list fields together."""


class Blind(Result):
    """Answers to grey images of the same sizes."""

    accuracy: float
    answers: dict[str, int]
    """Answer -> images."""


class PairResult(Measured):
    """One GGUF pair on llama-server."""

    text: str
    """File name of the text model."""
    mmproj: str
    shipped: bool
    """A type that the run file asks for: released if it passes."""
    calibration_error_scaled: float | None = None
    """After the temperature."""
    bins_scaled: list[ReliabilityBin] = []
    agreement: float
    """Share of answers that mean the same as those of the merged model by transformers."""
    prompt_ids_equal: bool
    """The ids of the prompt's text are those that the student was trained on."""
    prompt_tokens: tuple[int, int]
    """Least and most tokens of a prompt, as the server counted them."""
    prompt_tokens_wrong: int
    """Images whose count differs from the student's layout."""
    blind: Blind | None = None


class Parity(Result):
    """Log-probabilities of one token of the answer, on llama-server against transformers in float32.

    Of one image: the root of the mean squared difference (nats) over the tokens compared.
    """

    pair: str
    images: int
    tokens: int
    """Compared over all images."""
    max_nats: float
    """Of the worst image; the gate looks at this."""
    mean_nats: float
    """Over the images."""
    max_nats_of_a_token: float
    """Largest single difference; for information."""


class Comparison(Result):
    """Two answerers on the same images."""

    first: str
    second: str
    only_first: int
    """Images that only the first got right."""
    only_second: int
    p_value: float
    """McNemar, exact, two-sided."""


class Metrics(Result):
    """All numbers of an evaluation."""

    kind: str
    """The task's."""
    answer: str
    """The task's; `fields` for `extract`."""
    family: str
    device_exact: bool
    """Of the family: the student is trained on the very pixels and tokens of llama.cpp, so that parity is a gate."""
    classes: list[str]
    images: int
    images_available: int
    """Test images of the dataset; fewer were measured if `max_images` says so."""
    majority: float | None
    """Share of the most frequent label: what guessing it would reach. None where there are no classes."""
    validation_images: int
    temperature: float | None
    """One for the release, fitted on the validation answers of all shipped pairs together. None where no class is chosen."""
    order: list[str]
    """Keys of `types`: the shipped ones in the run file's order, then the reference for parity."""
    types: dict[str, PairResult]
    transformers: Measured
    """The merged model. Where answers are written, it writes freely, without the grammar."""
    base: Measured
    """The checkpoint before training: a pair of the types in `base_types` on llama-server, as the shipped ones."""
    base_types: tuple[str, str]
    """Of its text model and mmproj."""
    comparisons: list[Comparison]
    parity: Parity
    """The reference pair: the likeliest token."""
    layout: Parity
    """The same weights as float32: every token that was compared."""
    parity_after: str | None
    """What of an answer stands before the compared token; None: nothing that leaves a choice, in the grammar."""
    similarity: str | None
    """Name and version of the metric that compares free texts."""
    blind: Blind
    """The best that any shipped pair does without seeing."""

    def to_bytes(self) -> bytes:
        """Canonical JSON: equal results have equal bytes. It sorts `types`; `order` keeps the run file's order."""
        return canonical_json(self.model_dump(mode="json"))


class Prediction(Result):
    """One line of predictions.jsonl: a test image and all answers to it."""

    sha256: str
    """Of the original file."""
    source_id: str
    label: str
    transformers: str
    """Its answer as written, without the lead; the same of `base` and `answers`."""
    transformers_label: str | None
    """What the answer says, as `label` says it; None for what is no answer of the task."""
    transformers_confidence: float | None
    base: str
    base_label: str | None
    answers: dict[str, str]
    """Type -> answer."""
    labels: dict[str, str | None]
    """Type -> what the answer says."""
    confidences: dict[str, float]
    """Type -> confidence, before the temperature."""


class GateResult(Result):
    """One gate: what was measured, what was asked."""

    name: str
    """Key of `evaluator.gates`, or of a check that no run file can switch off."""
    type: str
    """GGUF type, or `all`."""
    measured: float
    limit: float
    rule: Literal["at least", "at most"]
    passed: bool
