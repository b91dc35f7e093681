"""The run file as models: every key, its unit, its default. The only reader of YAML.

A run file is a Helm values file. Its `run:` block is the recipe and is read here; the chart owns the other keys.
The docstring under a field is its documentation (docs/run-file.md is generated from it).
"""

from __future__ import annotations

import difflib
import re
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    field_serializer,
    field_validator,
    model_serializer,
    model_validator,
)

from pocketvlm.errors import NotAvailableYet, RunFileError

Name = Annotated[str, Field(pattern=r"^[a-z0-9]([-a-z0-9]{0,38}[a-z0-9])?$")]
Part = Literal["vision", "connector", "text"]
OneClass = Annotated[dict[str, str], Field(min_length=1, max_length=1)]
GgufType = Literal["bf16", "f16", "q8_0", "q6_k", "q5_k_m", "q5_0", "q4_k_m", "q4_0", "iq4_nl"]


class _IdleKeys(ValueError):
    def __init__(self, keys: dict[str, str]) -> None:
        super().__init__(f"{', '.join(keys)}: without effect")
        self.keys = keys


class Block(BaseModel):
    """A closed block: a key that is not here is an error, and so is one that means nothing beside the others."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    def idle(self) -> dict[str, str]:
        """Keys that mean nothing as the others are set, and what to do about each."""
        return {}

    @model_validator(mode="after")
    def _nothing_idle_is_set(self) -> Self:
        set_ = {key for key in self.model_fields_set if getattr(self, key) is not None}
        if idle := {key: why for key, why in self.idle().items() if key in set_}:
            raise _IdleKeys(idle)
        return self

    @model_serializer(mode="wrap")
    def _nothing_idle_is_written(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        idle = self.idle()
        return {key: value for key, value in handler(self).items() if key not in idle}


class Task(Block):
    """What is asked of an image, and what may be answered."""

    kind: Literal["classify", "extract"] = "classify"
    """`classify`: one of `classes`. `extract`: JSON fields (not available yet)."""
    classes: dict[str, str] = Field(default_factory=dict)
    """Class name -> description for the teacher. A list (`- name: description`) keeps its order, in reports too; a mapping is
    read in the order of its names."""
    fields: dict[str, Any] = Field(default_factory=dict)
    """For `extract`: field name -> type and description (not available yet)."""
    question: str
    """Asked of every image; shipped as part of `prompt.txt`."""
    system: str | None = None
    """A system text before the first user turn (not available yet)."""
    questions: list[str] = Field(default_factory=list)
    """More question templates for training (not available yet)."""
    answer: Literal["label", "reasoning"] = "label"
    """`label`: the class name. `reasoning`: `Reasoning: ... Answer: name` (not available yet)."""

    @field_validator("question")
    @classmethod
    def _no_markers(cls, text: str) -> str:
        for marker in ("<__media__>", "<image>", "<end_of_utterance>", "<|im_start|>"):
            if marker in text:
                raise ValueError(f"holds {marker}, which is placed by the student's prompt; remove it")
        if not text.strip():
            raise ValueError("is empty")
        return text

    @field_validator("classes", mode="before", json_schema_input_type=list[OneClass] | dict[str, str])
    @classmethod
    def _in_order(cls, value: Any) -> Any:
        """Helm sorts the keys of a mapping. So they are sorted here too: a laptop and a cluster must agree on every id."""
        if isinstance(value, list):
            if not all(isinstance(item, dict) and len(item) == 1 for item in value):
                raise ValueError("each item of the list must be one `- name: description`")
            merged = {name: text for item in value for name, text in item.items()}
            if len(merged) < len(value):
                raise ValueError("a class is named twice")
            return merged
        return dict(sorted(value.items(), key=lambda item: str(item[0]))) if isinstance(value, dict) else value

    @field_serializer("classes")
    def _as_list(self, classes: dict[str, str]) -> list[dict[str, str]]:
        return [{name: description} for name, description in classes.items()]

    @field_validator("classes")
    @classmethod
    def _plain_names(cls, classes: dict[str, str]) -> dict[str, str]:
        for name in classes:
            if name != name.strip() or not name or re.search(r'[\n"\\<>]', name):
                raise ValueError(
                    f"class name {name!r} must be plain text without quotes, backslash, <, > or line breaks"
                )
        folded = [name.casefold() for name in classes]
        if len(set(folded)) != len(folded):
            raise ValueError("two class names differ only in case")
        return classes

    @model_validator(mode="after")
    def _classes_needed(self) -> Self:
        if self.kind == "classify" and len(self.classes) < 2:
            raise ValueError("classes: a classify task needs at least two classes")
        return self


class Device(Block):
    """How the phone sees an image. Read by every stage and shipped in release.json."""

    canvas_px: int | None = Field(default=256, ge=8, le=4096)
    """The app letterboxes every image to this square, black padding. `null`: the image as it is."""
    longest_edge_px: int = Field(default=512, ge=8, le=4096)
    """Tile budget, a multiple of the model's tile. For 512 px tiles: 512 = 2 tiles = 128 visual tokens, 2048 = 17 = 1088."""
    max_new_tokens: int = Field(default=32, ge=1, le=4096)
    """Tokens that the phone may generate for one answer, the end token included."""


class Student(Block):
    """The small VLM that is trained."""

    model: str
    """`tiny` (built in, random weights), a folder, or a Hub id such as `HuggingFaceTB/SmolVLM2-500M-Video-Instruct`."""
    revision: str | None = Field(default=None, pattern=r"^[0-9a-f]{40}$")
    """Commit of the Hub id, 40 hex digits; required for a Hub id."""
    seed: int = 0
    """Seed of the random weights of `tiny`, and of no other."""

    def idle(self) -> dict[str, str]:
        idle = {}
        if not is_hub_shaped(self.model):
            idle["revision"] = f"only a Hub id has one, and model is {self.model!r}; remove it"
        if self.model != "tiny":
            idle["seed"] = "only model: tiny has random weights; remove it (that of the training is trainer.seed)"
        return idle


def is_hub_shaped(model: str) -> bool:
    """Whether `student.model` looks like a Hub id, `owner/name`; a folder of that name comes first."""
    return model.count("/") == 1 and not model.startswith((".", "/", "~"))


class DigitsSource(Block):
    """The 1,797 handwritten digits that scikit-learn ships (UCI, CC BY 4.0), 8x8 grey, enlarged to `side_px`."""

    kind: Literal["digits"]
    side_px: int = Field(default=32, ge=8, le=512)
    """Side of the enlarged image, nearest neighbour."""
    limit: int | None = Field(default=None, ge=10)
    """Take only the first images, for tests."""


class FolderSource(Block):
    """Class sub-folders: `<path>/<class>/<image>`, as Kaggle sets come."""

    kind: Literal["folder"]
    path: str
    """The folder; relative to the run file."""
    class_folders: dict[str, str] = Field(default_factory=dict)
    """Folder name -> class name, where they differ."""
    licence: str | None = None
    """Licence of the images, kept with each of them."""


class RecordsSource(Block):
    """A JSON, JSONL or CSV file with `image_id, image_path` and a label column; optionally `reason, confidence`."""

    kind: Literal["records"]
    path: str
    """The file; relative to the run file. `image_path` in it is relative to `images`."""
    images: str | None = None
    """Folder of the images; default: the folder of `path`."""
    label_column: str = "label"
    """Name of the label's column (for example `element`)."""
    licence: str | None = None
    """Licence of the images, kept with each of them."""


class CocoSource(Block):
    """COCO 2017 (not available yet)."""

    kind: Literal["coco"]
    split: Literal["train", "val"] = "train"
    """Which COCO split to sample."""
    limit: int = Field(default=1000, ge=1)
    """Images to take."""


class UnsplashSource(Block):
    """Unsplash search or Lite dataset (not available yet)."""

    kind: Literal["unsplash"]
    queries: list[str] = Field(default_factory=list)
    """Search words."""
    limit: int = Field(default=1000, ge=1)
    """Images to take."""


class HubSource(Block):
    """A Hugging Face image dataset (not available yet)."""

    kind: Literal["hub"]
    dataset: str
    """`owner/name`."""
    revision: str | None = Field(default=None, pattern=r"^[0-9a-f]{40}$")
    """Commit, 40 hex digits."""
    limit: int | None = Field(default=None, ge=1)
    """Images to take."""


Source = Annotated[
    DigitsSource | FolderSource | RecordsSource | CocoSource | UnsplashSource | HubSource, Field(discriminator="kind")
]


class Teacher(Block):
    """The model that labels images (not available yet)."""

    model: str
    """Name at the endpoint, for example `gpt-4o`."""
    base_url: str | None = None
    """Any OpenAI-compatible endpoint."""


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
    min_confidence: float | None = Field(default=None, ge=0, le=1)
    """Quarantine images whose record has a lower confidence. Sources `digits` and `folder` have none."""
    split: Split = Split()
    """Train, validation and test."""
    near_copies: bool = True
    """Keep near-copies of one image (perceptual hash, confirmed by pixels) on one side of the split."""
    max_pixels: int = Field(default=50_000_000, ge=1)
    """Images of more pixels are quarantined, undecoded."""

    def idle(self) -> dict[str, str]:
        if self.source.kind in ("digits", "folder"):
            return {"min_confidence": f"images of source {self.source.kind} have no confidence; remove it"}
        return {}


class Phase(Block):
    """One phase of training. LoRA is one phase; frozen vision first and everything later are two."""

    method: Literal["lora", "full"] = "lora"
    """`lora`: adapters on linear layers of the parts. `full`: all weights of the parts."""
    train: list[Part] = Field(default=["text"], min_length=1)
    """Parts that learn; the others are frozen."""
    epochs: float = Field(default=3, gt=0, le=1000)
    """Passes over the training split."""
    learning_rate: float = Field(default=2e-4, gt=0, lt=1)
    """Peak rate of AdamW."""
    part_learning_rates: dict[Part, float] = Field(default_factory=dict)
    """Rates of single parts, instead of `learning_rate`."""
    warmup_steps: int = Field(default=0, ge=0)
    """Optimiser steps of linear warm-up."""
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    """Of the rate, after warm-up, down to zero (`constant`: stays)."""
    weight_decay: float = Field(default=0.0, ge=0, lt=1)
    """Of AdamW, on weights of two or more dimensions."""
    rank: int = Field(default=16, ge=1, le=1024)
    """LoRA rank. This and the next three keys are of a `lora` phase only."""
    alpha: float = Field(default=32, gt=0)
    """LoRA alpha; the update is scaled by alpha / rank."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """LoRA dropout."""
    targets: dict[Part, list[str]] = Field(default_factory=dict)
    """LoRA targets by part, as names of linear layers; default: all linear layers of the trained parts."""

    def idle(self) -> dict[str, str]:
        why = "only a lora phase has it; remove it, or set method: lora"
        return dict.fromkeys(("rank", "alpha", "dropout", "targets"), why) if self.method == "full" else {}

    @model_validator(mode="after")
    def _parts_agree(self) -> Self:
        for key in ("part_learning_rates", "targets"):
            for part in getattr(self, key):
                if part not in self.train:
                    raise ValueError(
                        f"{key}.{part}: {part} is not in train {self.train}; add it there or remove this key"
                    )
        if len(set(self.train)) != len(self.train):
            raise ValueError(f"train: a part is named twice in {self.train}")
        return self


class Trackers(Block):
    """Experiment trackers, all off by default; each needs its package."""

    tensorboard: bool = False
    """Event files, in `runs/<run>/tensorboard/` of the store."""
    wandb: str | None = None
    """Project name at Weights & Biases; the key comes from the environment."""
    mlflow: str | None = None
    """Tracking URI."""


class Trainer(Block):
    """How the student learns."""

    phases: list[Phase] = Field(min_length=1)
    """One after the other, each from the best weights of the one before."""
    batch_size: int = Field(default=16, ge=1, le=4096)
    """Samples of one optimiser step."""
    micro_batch_size: int | None = Field(default=None, ge=1)
    """Samples of one forward pass; must divide `batch_size`; default: `batch_size`."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """`auto`: bf16 where the device computes it natively, else fp32."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """Gradients are clipped to this norm."""
    seed: int = 0
    """Of the order of samples, dropout and adapters."""
    validate_every: float = Field(default=1.0, gt=0)
    """Epochs between two validations by scored answers; each is also a checkpoint."""
    checkpoint_every_steps: int | None = Field(default=None, ge=1)
    """Optimiser steps between checkpoints in the store; default: at each validation."""
    deterministic: bool = True
    """Ask torch for deterministic kernels. On CPU a resumed run is bit-identical to an undisturbed one."""
    trackers: Trackers = Trackers()
    """Experiment trackers."""

    @model_validator(mode="after")
    def _divides(self) -> Self:
        if self.micro_batch_size and self.batch_size % self.micro_batch_size:
            raise ValueError(f"micro_batch_size: {self.micro_batch_size} does not divide batch_size {self.batch_size}")
        return self


class Quantiser(Block):
    """Which GGUF files are made. The bf16 pair is always made, for parity."""

    types: list[GgufType] = Field(default=["q8_0"], min_length=1)
    """Types of the text model that are released, together: one type that fails a gate keeps them all back."""
    mmproj: Literal["f16", "q8_0"] = "q8_0"
    """Type of the vision model and connector."""

    @field_validator("types")
    @classmethod
    def _once(cls, kinds: list[GgufType]) -> list[GgufType]:
        if len(set(kinds)) != len(kinds):
            raise ValueError("a type is named twice")
        return kinds


class Gates(Block):
    """What a pair must reach to be released. All are measured on the GGUF on llama.cpp, on the test split."""

    min_accuracy: float = Field(default=0.0, ge=0, le=1)
    """Accuracy of each released type."""
    max_drop: float | None = Field(default=0.02, ge=0, le=1)
    """Accuracy of the merged model by transformers minus that of the type."""
    min_agreement: float | None = Field(default=0.98, ge=0, le=1)
    """Share of equal answers, GGUF against transformers, of each type."""
    max_parity_nats: float = Field(default=0.01, gt=0)
    """Largest difference of log-probabilities of the first answer token, bf16 pair against transformers."""
    max_blind_accuracy: float | None = Field(default=None, ge=0, le=1)
    """Accuracy on grey images; default: the share of the most frequent class + 0.15."""
    min_sight: float | None = Field(default=0.25, le=1)
    """Share of the errors on grey images that seeing the image removes: (accuracy - blind) / (1 - blind), of each type. A model
    that answers without looking has 0, however common its answer is."""
    max_expected_calibration_error: float | None = Field(default=None, ge=0, le=1)
    """After temperature scaling."""


class Evaluator(Block):
    """How the files are measured."""

    gates: Gates = Gates()
    """A refused model is not released."""
    max_images: int | None = Field(default=None, ge=10)
    """Measure on this many test images at most, chosen by hash; default: all."""
    parity_images: int = Field(default=16, ge=1, le=1000)
    """Test images on which log-probabilities are compared."""
    golden_images: int = Field(default=4, ge=1, le=64)
    """Test images that are released with their expected answers."""
    answer_threshold: float = Field(default=0.5, ge=0, le=1)
    """Below this confidence the app should say that it does not know; shipped in release.json."""


class Recipe(Block):
    """The `run:` block."""

    name: Name
    """Lower-case letters, digits and hyphens, at most 40; names the release."""
    version: str | None = Field(default=None, pattern=r"^[A-Za-z0-9][-A-Za-z0-9._]{0,63}$")
    """Version of the release; default: from its content."""
    task: Task
    """What is asked, and what may be answered."""
    device: Device = Device()
    """How the phone sees an image."""
    student: Student
    """The model."""
    labeller: Labeller
    """Images and labels."""
    trainer: Trainer
    """Training."""
    quantiser: Quantiser = Quantiser()
    """GGUF files."""
    evaluator: Evaluator = Evaluator()
    """Measurement and gates."""


class RunFile(BaseModel):
    """A run file. Keys beside `run:` belong to the Helm chart and are not read here."""

    model_config = ConfigDict(extra="allow", frozen=True)

    run: Recipe
    folder: Path = Field(default=Path(), exclude=True)
    """Folder of the file; relative paths in it start here."""


class _KeyTwice(yaml.YAMLError):
    """YAML itself lets the second one win, silently."""


class _Loader(yaml.SafeLoader):
    """Refuses a key that is there twice. Reads 1e-05 and 5e+07 as numbers, as YAML 1.2 does and as Helm writes what was 1.0e-5
    and 50000000 in a values file."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        first: dict[tuple[str, str], int] = {}
        for key, _ in node.value:
            line = key.start_mark.line + 1
            if (name := (key.tag, str(key.value))) in first:
                raise _KeyTwice(f"line {line}: the key `{key.value}` is there already, in line {first[name]}; remove one")
            first[name] = line
        return node


_Loader.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9]+[eE][-+]?[0-9]+\Z"), list("-+0123456789"))


def read_run_file(path: Path) -> RunFile:
    """Reads and checks a run file. Raises RunFileError with one line for each problem: key path, what, what to do."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise RunFileError(f"{path}: cannot be read ({error.strerror}); name an existing run file") from error
    except UnicodeDecodeError as error:
        raise RunFileError(f"{path}: is not UTF-8 text ({error.reason} at byte {error.start}); save it as UTF-8") from error
    try:
        data = yaml.load(text, Loader=_Loader)
    except _KeyTwice as error:
        raise RunFileError(f"{path}: {error}") from error
    except yaml.YAMLError as error:
        raise RunFileError(f"{path}: is not YAML: {error}") from error
    if not isinstance(data, dict) or "run" not in data:
        raise RunFileError(f"{path}: has no `run:` block; put the recipe under `run:`")
    return check_run_file(data, path)


def check_run_file(data: dict[str, Any], path: Path) -> RunFile:
    """Checks parsed YAML. Raises RunFileError."""
    try:
        return RunFile.model_validate({**data, "folder": path.parent})
    except ValidationError as error:
        raise RunFileError("\n".join(f"{path}: {line}" for line in _explain(error))) from error


def _explain(error: ValidationError) -> Iterator[str]:
    for item in error.errors():
        keys = [key for key in item["loc"] if key != item.get("ctx", {}).get("tag")]
        tags = {"digits", "folder", "records", "coco", "unsplash", "hub"}
        keys = [key for i, key in enumerate(keys) if not (key in tags and i and keys[i - 1] == "source")]
        where = "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in keys).lstrip(".")
        if item["type"] == "extra_forbidden":
            near = difflib.get_close_matches(str(keys[-1]), _sibling_keys(item["loc"]), n=1, cutoff=0.4)
            hint = f"; did you mean `{near[0]}`?" if near else ""
            yield f"{where}: no such key{hint}"
        elif item["type"] == "missing":
            yield f"{where}: is missing; add it"
        elif item["type"] == "value_error" and isinstance(item["ctx"]["error"], _IdleKeys):
            yield from (f"{where}.{key}: {why}" for key, why in item["ctx"]["error"].keys.items())
        elif item["type"] == "value_error":
            yield f"{where}: {item['ctx']['error']}"
        else:
            value = f" (got {item['input']!r})" if not isinstance(item["input"], dict | list) else ""
            yield f"{where}: {item['msg'][0].lower()}{item['msg'][1:]}{value}"


def _sibling_keys(loc: tuple[int | str, ...]) -> list[str]:
    """Keys of the model that holds the key at `loc`."""
    model: Any = RunFile
    for key in loc[:-1]:
        models = list(_models_of(model))
        found = next((m.model_fields[key].annotation for m in models if key in m.model_fields), None)
        if found is None:
            chosen = [
                m for m in models if typing.get_args(getattr(m.model_fields.get("kind"), "annotation", None)) == (key,)
            ]
            found = chosen[0] if chosen else model
        model = found
    return sorted({name for m in _models_of(model) for name in m.model_fields})


def _models_of(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and not isinstance(annotation, types.GenericAlias):
        if issubclass(annotation, BaseModel):
            yield annotation
        return
    for argument in typing.get_args(annotation):
        yield from _models_of(argument)


def not_available(recipe: Recipe) -> list[str]:
    """Keys that ask for parts which this version does not have, one line each; empty when all is there."""
    lines = []
    if recipe.task.kind != "classify":
        lines.append(f"run.task.kind: {recipe.task.kind} is not available yet; classify is")
    if recipe.task.answer != "label":
        lines.append(f"run.task.answer: {recipe.task.answer} is not available yet; label is")
    for key in ("fields", "system", "questions"):
        if getattr(recipe.task, key):
            lines.append(f"run.task.{key}: not available yet; remove it")
    if recipe.labeller.source.kind not in ("digits", "folder", "records"):
        lines.append(
            f"run.labeller.source.kind: {recipe.labeller.source.kind} is not available yet; "
            "digits, folder and records are"
        )
    if recipe.labeller.teacher:
        lines.append("run.labeller.teacher: not available yet; use a source that is already labelled")
    return lines


def refuse_not_available(recipe: Recipe) -> None:
    """Raises NotAvailableYet with one line for each key that asks for a part which this version does not have."""
    if lines := not_available(recipe):
        raise NotAvailableYet("\n".join(lines))
