"""What a family of small VLMs is to the stages: one object, which answers for its layout, its parts and its forward pass.

No torch is imported here: tensors are handled by their own methods, models by their own attributes. Shapes as in
student/forward.py.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from PIL import Image

from pocketvlm.run_file import Device, Part, Task
from pocketvlm.run_file.template import fill
from pocketvlm.student.pixels import Tiles

if TYPE_CHECKING:
    from torch import Tensor

PARTS: tuple[Part, ...] = ("vision", "connector", "text")
HEAD = "lm_head"
"""Path of the output head, the linear layer before the vocabulary."""
MEDIA = "<__media__>"
"""llama.cpp's marker for the image. It is replaced before the model sees anything, and is never in training text."""


@dataclass(frozen=True)
class Template:
    """The chat layout of a family, as text. The end token of an answer is `end`."""

    turn: str
    """The prompt with `{image}` and `{question}`."""
    system: str
    """Stands before the turn where there are instructions, with `{system}`."""
    end: str
    plain: str = ""
    """Stands there where there are no instructions."""
    start: str = ""
    """What every prompt begins with."""
    bos: str | None = None
    """A token that llama.cpp puts first on its own account (`tokenizer.ggml.add_bos_token`), and that is in no text."""

    @property
    def tokens(self) -> list[str]:
        """Its special tokens; each must be one token of the vocabulary."""
        return re.findall(r"<[^<>{}\s]+>", f"{self.bos or ''}{self.start}{self.system}{self.turn}{self.end}")

    def prompt(self, question: str, *, system: str | None = None) -> str:
        """The bytes of a prompt, with MEDIA where the image goes."""
        before = self.plain if system is None else fill(self.system, {"system": system})
        return self.start + before + fill(self.turn, {"image": MEDIA, "question": question})

    def of(self, task: Task, question: str | None = None) -> str:
        """The prompt of a task, in its own template if it has one; with another question than the shipped one, if given."""
        asked = task.question if question is None else question
        if task.prompt_template is None:
            return self.prompt(asked, system=task.system)
        values = {"image": MEDIA, "question": asked, "system": task.system or ""}
        return fill(task.prompt_template, values)


class Layout(Protocol):
    """How one image stands in the prompt. Equal layouts make equal tokens."""

    @property
    def tiles(self) -> int:
        """Runs of the phone's vision encoder."""

    @property
    def words(self) -> str:
        """For `plan`: `1x1 tiles and the overview`."""

    def __hash__(self) -> int: ...
    def __eq__(self, other: object, /) -> bool: ...


@dataclass(frozen=True)
class Sight:
    """What the vision tower reads of one image."""

    tiles: Tiles
    """(N, ...): the different tiles, all of one shape and dtype for a checkpoint and device."""
    places: list[int]
    """For each tile of the layout, its place in `tiles`."""
    layout: Hashable
    """As `Layout`."""


class Eye(Protocol):
    """Turns images into what the vision tower of one checkpoint reads, for one device."""

    def look(self, image: Image.Image) -> Sight:
        """RGB image (after the device's canvas) -> Sight."""

    def layout(self, size: tuple[int, int]) -> Any:
        """The `Layout` of an image of this width and height."""


@dataclass(frozen=True)
class Geometry(ABC):
    """What a checkpoint's config.json fixes. A family may add fields of its own."""

    family: Family
    tied_head: bool
    """The output head shares its weights with the token embeddings."""

    @property
    @abstractmethod
    def patches_per_token(self) -> int:
        """Patches that the vision tower makes one visual token of."""


class Family(ABC):
    """A family of small VLMs. Its file in this folder holds one object of one subclass; table.py names it."""

    name: str
    architecture: str
    """Its class in `architectures` of config.json."""
    prefixes: Mapping[Part, tuple[str, ...]]
    """Where each part's tensors live in the Hugging Face state dict."""
    template: Template
    image_token: str
    """Stands in the ids wherever a visual token goes."""
    device_exact: bool = False
    """True: student/ builds the very pixels and tokens of the pinned llama.cpp. Else the family's own processor does, and
    how far that is from the phone is measured and stated."""
    text_architecture: str | None = None
    """What `text_config.architectures` must say for llama.cpp's converter; None: it does not ask."""
    tokens_key: str = "longest_edge_px"
    """Key of the device block that decides how many tokens an image has."""
    embeddings: tuple[str, ...] = ("embed_tokens", "position_embedding")
    """Last names of the modules whose weight is a matrix and that are no linear layers."""
    features_of: tuple[Part, ...] = ("vision", "connector")
    """Parts that the features depend on: where they are frozen, features are computed once per image."""

    # --- parts

    def part_of(self, tensor: str) -> Part:
        """The part that owns a tensor name; the longest prefix decides. Raises KeyError for a name of no part."""
        found = [(len(prefix), part) for part, own in self.prefixes.items() for prefix in own if tensor.startswith(prefix)]
        if not found:
            raise KeyError(f"{tensor} belongs to no part of {self.name}")
        return max(found)[1]

    def owns(self, tensor: str) -> bool:
        """Whether a tensor of this name belongs to a part."""
        return any(tensor.startswith(prefix) for own in self.prefixes.values() for prefix in own)

    def linear_layers(self, shapes: Mapping[str, Sequence[int]], *, tied_head: bool) -> list[str]:
        """Paths of the linear layers, by the tensors of a checkpoint; a tied head is one and has no tensor there."""
        matrices = [name.removesuffix(".weight") for name, shape in shapes.items()
                    if name.endswith(".weight") and len(shape) == 2]  # fmt: skip
        layers = [path for path in matrices if path.rpartition(".")[2] not in self.embeddings]
        return [*layers, HEAD] if tied_head and HEAD not in layers else layers

    # --- the checkpoint and the device

    @abstractmethod
    def geometry(self, config: Mapping[str, Any]) -> Geometry:
        """From a parsed config.json."""

    @abstractmethod
    def device_problems(self, geometry: Any, device: Device) -> Iterator[str]:
        """What of the device block cannot be with this student: a line each, beginning with the key."""

    @abstractmethod
    def eye(self, geometry: Any, device: Device, folder: Path) -> Eye:
        """For a device without problems; `folder` is the checkpoint's, for its processor files."""

    @abstractmethod
    def image_tokens(self, geometry: Any, layout: Any) -> list[str]:
        """The tokens of an image in the prompt, as texts that are one token each."""

    @abstractmethod
    def save_processor(self, folder: Path, source: Path, geometry: Any, device: Device) -> None:
        """Writes tokenizer, template and processor files of the checkpoint `source` beside merged weights, for the converter."""

    @abstractmethod
    def mmproj_keys(self, geometry: Any, device: Device) -> dict[str, Any]:
        """Keys that the vision file must have, so that it sees images as the student did."""

    # --- the forward pass, in three steps

    @abstractmethod
    def features(self, model: Any, tiles: Tensor) -> Tensor:
        """tiles (N, ...) as `Sight` has them, on the model's device -> features_NTC, in the vision part's dtype."""

    @abstractmethod
    def text_model(self, model: Any) -> Any:
        """The text model, without its head."""

    def visual_tokens(self, model: Any, features_NTC: Tensor) -> Tensor:
        """visual_NTD, as they stand among the text's embeddings: the features themselves, where they come from behind the
        connector."""
        return features_NTC

    def prefill(self, model: Any, ids_BS: Tensor, features_NTC: Tensor, cache: Any = None) -> tuple[Tensor, Any]:
        """hidden_BSD of whole sequences, and the position that `step` goes on from (None: the cache's length).

        features_NTC are the tiles of all samples in order, repetitions written out. Samples are filled up on the right, so
        the causal mask alone is right; with a cache all are of one length. Raises ValueError when the number of features is
        not that of the image tokens.
        """
        embeddings_BSD = self.text_model(model).get_input_embeddings()(ids_BS)
        visual_NTD = self.visual_tokens(model, features_NTC)
        return self._hidden(model, place_features(embeddings_BSD, ids_BS, visual_NTD, model.config.image_token_id), cache), None

    def step(self, model: Any, ids_B1: Tensor, position: Any, cache: Any) -> tuple[Tensor, Any]:
        """hidden_B1D of one more token each, and the next position."""
        return self._hidden(model, self.text_model(model).get_input_embeddings()(ids_B1), cache), None

    def _hidden(self, model: Any, embeddings_BSD: Tensor, cache: Any, **more: Any) -> Tensor:
        text = self.text_model(model)
        output = text(inputs_embeds=embeddings_BSD, past_key_values=cache, use_cache=cache is not None, **more)
        hidden_BSD: Tensor = output.last_hidden_state
        return hidden_BSD

    def new_cache(self, model: Any) -> Any:
        """An empty cache of keys and values for `prefill` and `step`."""
        from transformers import DynamicCache

        return DynamicCache(config=model.config.get_text_config())

    def logits(self, model: Any, hidden: Tensor) -> Tensor:
        """Over the vocabulary."""
        result: Tensor = model.lm_head(hidden)
        return result


def place_features(embeddings_BSD: Tensor, ids_BS: Tensor, visual_NTD: Tensor, image_id: int) -> Tensor:
    """The visual tokens stand where ids_BS has the image token. Raises ValueError when their numbers differ."""
    where_BS = ids_BS == image_id
    if int(where_BS.sum()) != visual_NTD.shape[0] * visual_NTD.shape[1]:
        raise ValueError(f"{int(where_BS.sum())} image tokens for {visual_NTD.shape[0]} tiles of {visual_NTD.shape[1]}")
    return embeddings_BSD.masked_scatter(where_BS.unsqueeze(-1), visual_NTD.to(embeddings_BSD.dtype))
