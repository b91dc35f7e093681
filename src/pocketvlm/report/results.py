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


class Measured(Result):
    """Answers of one answerer to the test images."""

    images: int
    correct: int
    accuracy: float
    interval: tuple[float, float]
    """95 %, Wilson."""
    macro_f1: float
    outside: int
    """Answers outside the classes."""
    classes: list[ClassRow]
    confusion: list[list[int]]
    """Rows: label; columns: answer, the last one for answers outside the classes."""
    calibration_error: float
    bins: list[ReliabilityBin]


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
    calibration_error_scaled: float
    """After the temperature."""
    bins_scaled: list[ReliabilityBin]
    agreement: float
    """Share of answers equal to those of the merged model by transformers."""
    prompt_ids_equal: bool
    """The ids of the prompt's text are those that the student was trained on."""
    prompt_tokens: tuple[int, int]
    """Least and most tokens of a prompt, as the server counted them."""
    prompt_tokens_wrong: int
    """Images whose count differs from the student's layout."""
    blind: Blind | None = None


class Parity(Result):
    """Log-probabilities of first answer tokens, on llama-server against transformers in float32.

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

    classes: list[str]
    images: int
    images_available: int
    """Test images of the dataset; fewer were measured if `max_images` says so."""
    majority: float
    """Share of the most frequent label: what guessing it would reach."""
    validation_images: int
    temperature: float
    """One for the release, fitted on the validation answers of all shipped pairs together."""
    order: list[str]
    """Keys of `types`: the shipped ones in the run file's order, then the reference for parity."""
    types: dict[str, PairResult]
    transformers: Measured
    """The merged model."""
    base: Measured
    """The checkpoint before training."""
    comparisons: list[Comparison]
    parity: Parity
    """The reference pair: the first answer token."""
    layout: Parity
    """The same weights as float32: every token that the grammar allows first."""
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
    transformers_confidence: float
    base: str
    answers: dict[str, str]
    """Type -> answer as the server wrote it."""
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
