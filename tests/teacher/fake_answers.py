"""What the fake teacher says: a function of the request's content alone, so that equal requests get equal bytes.

The label of an image is the class whose colour (see `colour_of`) is nearest to the image's mean colour, so that fixtures can
paint images of a class. Grey images are "none", where the schema has that value.
"""

from __future__ import annotations

import base64
import colorsys
import functools
import hashlib
import io
import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

Classify = Callable[[bytes, Sequence[str]], str]
"""JPEG and labels -> label."""

NONE = "none"
WORDS = ("light", "colour", "texture", "object", "shape", "surface", "edge", "shadow", "material", "background")


class NoImage(ValueError):
    """The request has no image that can be read; the message is the server's."""


@dataclass(frozen=True)
class Question:
    """What matters of a request to /v1/chat/completions."""

    body: dict[str, Any]
    image: bytes
    sha256: str
    seed: int | None
    turns: int
    """Messages; more of them are a repair."""
    digest: str
    """Sha256 of everything that was asked."""

    @property
    def key(self) -> tuple[str, int | None, int]:
        return self.sha256, self.seed, self.turns

    def dice(self, *salt: object) -> random.Random:
        """Chance that depends on the content only."""
        return random.Random(repr((self.key, *salt)))


def question_of(body: dict[str, Any]) -> Question:
    """Raises NoImage, KeyError or TypeError for a body of another form."""
    image, texts = b"", []
    for message in body["messages"]:
        content = message["content"]
        for part in content if isinstance(content, list) else [content]:
            if isinstance(part, dict) and part["type"] == "image_url":
                image = _decoded(part["image_url"]["url"])
            else:
                texts.append(part)
    sha256 = hashlib.sha256(image).hexdigest()
    digest = hashlib.sha256(json.dumps([{**body, "messages": texts}, sha256], sort_keys=True).encode()).hexdigest()
    return Question(body, image, sha256, body.get("seed"), len(body["messages"]), digest)


def _decoded(url: str) -> bytes:
    head, comma, data = url.partition(",")
    if not head.startswith("data:image/") or not head.endswith(";base64") or not comma:
        raise NoImage("Invalid image URL: only data: URLs with base64 are allowed here.")
    try:
        image = base64.b64decode(data, validate=True)
    except ValueError as error:
        raise NoImage("Invalid base64 image_url.") from error
    if look_at(image) is None:
        raise NoImage("You uploaded an unsupported image. Please make sure your image is valid.")
    return image


@functools.lru_cache(maxsize=256)
def look_at(image: bytes) -> tuple[tuple[int, int, int], int, int] | None:
    """Mean colour, width and height; None for what is no image."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(image)) as picture:
            width, height = picture.size
            picture.draft("RGB", (16, 16))
            red, green, blue = picture.convert("RGB").resize((1, 1), Image.Resampling.BOX).getpixel((0, 0))
    except OSError:
        return None
    return (red, green, blue), width, height


def colour_of(label: str, labels: Sequence[str]) -> tuple[int, int, int]:
    """The colour of a class: hues evenly apart in the order of the labels, "none" left out."""
    named = [name for name in labels if name != NONE]
    red, green, blue = colorsys.hsv_to_rgb(named.index(label) / len(named), 0.8, 0.8)
    return round(red * 255), round(green * 255), round(blue * 255)


def by_colour(image: bytes, labels: Sequence[str]) -> str:
    """The class of the nearest colour; "none" for grey."""
    seen = look_at(image)
    assert seen is not None
    colour = seen[0]
    if NONE in labels and max(colour) - min(colour) < 24:
        return NONE
    named = [name for name in labels if name != NONE]
    return min(named, key=lambda name: sum((a - b) ** 2 for a, b in zip(colour, colour_of(name, labels), strict=True)))


def by_hash(image: bytes, labels: Sequence[str]) -> str:
    """Any class, by the image's bytes."""
    return labels[int(hashlib.sha256(image).hexdigest(), 16) % len(labels)]


@dataclass(frozen=True)
class Speaker:
    """How it answers."""

    classify: Classify = by_colour
    waver: float = 0.1
    """Share of answers (by image and seed) that take another class than the image's, with less confidence."""

    def say(self, question: Question, schema: dict[str, Any]) -> Any:
        """A value that `schema` allows."""
        return _Saying(self, question, schema).value(schema)


class _Saying:
    def __init__(self, speaker: Speaker, question: Question, schema: dict[str, Any]) -> None:
        self._speaker, self._question, self._root = speaker, question, schema
        self._dice = question.dice("answer")
        self._wavers = question.dice("waver").random() < speaker.waver
        self._label: str | None = None

    def value(self, schema: dict[str, Any], name: str = "") -> Any:
        if "$ref" in schema:
            where: Any = self._root
            for step in schema["$ref"].removeprefix("#/").split("/"):
                where = where[step]
            return self.value({**where, **{key: item for key, item in schema.items() if key != "$ref"}}, name)
        if "const" in schema:
            return schema["const"]
        if "enum" in schema:
            return self._choose(list(schema["enum"]))
        for key in ("anyOf", "oneOf"):
            if key in schema:
                return self.value(next((one for one in schema[key] if one.get("type") != "null"), schema[key][0]), name)
        return self._typed(schema, name)

    def _typed(self, schema: dict[str, Any], name: str) -> Any:
        kind = schema.get("type", "object")
        kind = kind[0] if isinstance(kind, list) else kind
        if kind == "object":
            return self._object(schema.get("properties", {}))
        if kind == "array":
            count = max(schema.get("minItems", 0), min(schema.get("maxItems", 2), self._dice.randint(1, 2)))
            return [self.value(schema.get("items", {"type": "string"}), name) for _ in range(count)]
        if kind == "boolean":
            return self._dice.random() < 0.5
        if kind in ("number", "integer"):
            return self._number(schema, whole=kind == "integer")
        if kind == "null":
            return None
        text = " ".join(self._dice.choices(WORDS, k=8))
        return f"The {text}."[: schema.get("maxLength", 200)]

    def _object(self, properties: dict[str, Any]) -> dict[str, Any]:
        """The label is chosen before what stands before it, and all keep the order of the schema."""
        chosen = {name: self.value(one, name) for name, one in properties.items() if name == "label"}
        return {name: chosen[name] if name in chosen else self.value(one, name) for name, one in properties.items()}

    def _choose(self, values: list[Any]) -> Any:
        if not all(isinstance(value, str) for value in values):
            return self._dice.choice(values)
        if self._label is None:
            self._label = self._speaker.classify(self._question.image, values)
            if self._wavers:
                self._label = self._dice.choice([value for value in values if value != self._label] or values)
            return self._label
        return self._dice.choice([value for value in values if value != self._label] or values)

    def _number(self, schema: dict[str, Any], *, whole: bool) -> float | int:
        least, most = schema.get("minimum", 0), schema.get("maximum", 100 if whole else 1)
        if whole:
            return self._dice.randint(int(least), int(most))
        share = self._dice.uniform(0.3, 0.7) if self._wavers else self._dice.uniform(0.7, 1.0)
        return round(least + (most - least) * share, 3)


def schema_of(body: dict[str, Any]) -> dict[str, Any] | None:
    """The schema of the request: its response_format, or the first JSON object with "properties" in its texts."""
    asked = body.get("response_format") or {}
    if asked.get("type") == "json_schema":
        schema: dict[str, Any] = asked["json_schema"]["schema"]
        return schema
    for message in body["messages"]:
        content = message["content"]
        texts = [content] if isinstance(content, str) else [part["text"] for part in content or [] if part["type"] == "text"]
        for text in texts:
            start = text.find("{")
            while start >= 0:
                try:
                    found, _ = json.JSONDecoder().raw_decode(text, start)
                except ValueError:
                    found = None
                if isinstance(found, dict) and "properties" in found:
                    return found
                start = text.find("{", start + 1)
    return None


def usage_of(question: Question, answer: str) -> dict[str, Any]:
    """As OpenAI counts: about 4 characters a token, tiles of 512 px for images; a part of the prompt is cached, by content."""
    texts, images = 0, 0
    for message in question.body["messages"]:
        content = message["content"]
        for part in [{"type": "text", "text": content}] if isinstance(content, str) else content or []:
            if part["type"] == "text":
                texts += len(part["text"])
            elif part["image_url"].get("detail") == "low":
                images += 85
            else:
                seen = look_at(question.image)
                assert seen is not None
                images += 85 + 170 * -(-seen[1] // 512) * -(-seen[2] // 512)
    prompt = texts // 4 + images
    cached = texts // 4 // 128 * 128 if question.dice("cached").random() < 0.5 else 0
    output = -(-len(answer) // 4)
    return {"prompt_tokens": prompt, "completion_tokens": output, "total_tokens": prompt + output,
            "prompt_tokens_details": {"cached_tokens": cached, "audio_tokens": 0},
            "completion_tokens_details": {"reasoning_tokens": 0, "audio_tokens": 0}}  # fmt: skip
