"""The leak gate: looks through everything that would be uploaded for what is nobody else's business.

Two kinds of things are looked for: the secrets and places of this machine, which are known, and whatever has the shape of a
local path, a private address, a key, an e-mail address or a teacher's bill. It refuses and names the place; it never mends. What
it cannot look into is refused too. Vocabularies (tokenizer files, lists in a GGUF header) hold scraps of the whole web, so in
them only secrets are looked for.
"""

from __future__ import annotations

import itertools
import re
import socket
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import SecretStr

from pocketvlm.environment import Environment
from pocketvlm.publish.files import Upload
from pocketvlm.publish.texts import Text, texts_of

MIN_SECRET = 6
"""Characters of the shortest secret that is looked for: a shorter one would be found everywhere."""
_HOSTS = r"localhost|127\.\d+\.\d+\.\d+|10\.\d+\.\d+\.\d+|192\.168\.\d+\.\d+|172\.(?:1[6-9]|2\d|3[01])\.\d+\.\d+|\[::1\]"
SHAPES: Mapping[str, re.Pattern[str]] = {
    "a local path": re.compile(
        r"(?<![\w.:/~-])/(?:home|Users|root|tmp|var|mnt|media|opt|srv|private|Volumes|workspace|scratch|etc|usr|work|data)"
        r"(?:/[\w.@+-]+)+"
        r"|(?<![\w~])~[\w-]*/[\w.-]+|(?<!\w)[A-Za-z]:\\{1,2}(?:Users|Documents|Windows|Temp|Program Files|ProgramData)\b"
        r"|(?<!\w)[CD]:\\{1,2}[\w .-]{2,}\\{1,2}[\w .-]+"
    ),
    "a local or internal address": re.compile(
        rf"(?:file|s3|gs|abfss?|hdfs)://[^\s\"'<>)]+|https?://(?:{_HOSTS}|[\w-]+)(?::\d+)?(?=[/\s\"'<>)?#]|$)"
        r"|[\w-]+(?:\.[\w-]+)*\.(?:svc(?:\.cluster\.local)?|internal|intranet|corp|lan)(?::\d+|/|\b(?!\.\w))"
    ),
    "an address with a password or a signature": re.compile(
        r"\w+://[^\s/@:]+:[^\s/@]+@|[?&](?:X-Amz-\w+|Signature|sig|token|access_token|api_?key|client_id)=[^\s&\"]+",
        re.IGNORECASE,
    ),
    "a key": re.compile(
        r"\bhf_[A-Za-z0-9]{16,}|\bsk-[\w-]{16,}|\bAKIA[0-9A-Z]{16}\b|\bgh[pousr]_[A-Za-z0-9]{30,}|-----BEGIN [A-Z ]*PRIVATE KEY"
        r"|\beyJ[\w-]{10,}\.[\w-]{10,}\.[\w-]{5,}|\b[Bb]earer\s+[\w.-]{16,}"
    ),
    "an e-mail address": re.compile(r"[\w.+-]+@[A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)*\.[A-Za-z]{2,}"),
    "a teacher's request or its cost": re.compile(
        r"\b(?:chatcmpl|resp|req|batch)[-_][A-Za-z0-9]{12,}|\"?\b(?:teacher_)?(?:request_id|cost|usd|cost_usd)\"?\s*:\s*[\"\d]"
    ),
}
"""What -> how it looks."""
PRIVATE_COLUMNS = ("teacher_request_id", "teacher_cost")
"""Columns that a published dataset must not have."""


@dataclass(frozen=True)
class Known:
    """What this machine must not tell: text -> what it is."""

    secrets: Mapping[str, str]
    places: Mapping[str, str]

    @classmethod
    def of(cls, environment: Environment) -> Known:
        """Secrets of the environment; the store, the folders and the name of this machine."""
        secrets, places = {}, {}
        for name, field in type(environment).model_fields.items():
            value = getattr(environment, name)
            if isinstance(value, SecretStr) and len(value.get_secret_value()) >= MIN_SECRET:
                secrets[value.get_secret_value()] = str(field.validation_alias)
            elif isinstance(value, Path) and value.is_absolute():
                places[str(value)] = str(field.validation_alias)
        if "://" in environment.store or environment.store.startswith("/"):
            places[environment.store] = "POCKETVLM_STORE"
        if environment.endpoint_url:
            places[environment.endpoint_url] = "AWS_ENDPOINT_URL_S3"
        places |= {str(Path.home()): "the home folder", str(Path.cwd()): "the folder of this command"}
        if (host := socket.gethostname()) != "localhost":
            places[host] = "the name of this machine"
        return cls(secrets, {place: what for place, what in places.items() if len(place) >= 4})


def leaks(files: Iterable[Upload], known: Known) -> list[str]:
    """What would leak, one line each: file, place in it, what. Empty: nothing was found."""
    found: list[str] = []
    for file in files:
        seen: set[tuple[str | None, str]] = set()
        for text in itertools.chain([Text("name", file.name)], texts_of(file.path, file.name)):
            # The cells of most columns repeat each other, and a place is named once.
            if (text.column, text.value) not in seen:
                seen.add((text.column, text.value))
                found += [f"{file.name}, {text.where}: {what}" for what in _leaks_in(text, known)]
    return found


def _leaks_in(text: Text, known: Known) -> Iterator[str]:
    if text.opaque:
        yield text.value
        return
    yield from (f"holds the secret of {name}" for secret, name in known.secrets.items() if secret in text.value)
    if text.vocabulary:
        return
    if text.column in PRIVATE_COLUMNS:
        yield "is a column that only this side of the Hub may have"
    for place, what in known.places.items():
        if re.search(rf"(?<![\w.:/-]){re.escape(place)}(?![\w-])", text.value):
            yield f"names {what}, {place!r}"
    for what, shape in SHAPES.items():
        match = shape.search(text.value)
        if match:
            yield f"holds {what}" + ("" if what == "a key" else f", {match[0][:80]!r}")
