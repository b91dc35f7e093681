"""The question to a teacher: prompts from Jinja files, the schema of the answer, and the body of a call."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from jinja2 import StrictUndefined
from jinja2.sandbox import ImmutableSandboxedEnvironment

from pocketvlm.artifacts.manifest import canonical_json
from pocketvlm.errors import RunFileError
from pocketvlm.run_file import Task, Teacher
from pocketvlm.teacher.answers import NONE
from pocketvlm.teacher.schema import AnswerSchema, clean_text

FORMAT = 1
"""A change of how prompts, schema and parameters make a call gives every question a new key, so all is asked again."""
OPENAI_URL = "https://api.openai.com/v1"
PROMPT_CHARACTERS = 100_000
REPAIR_CHARACTERS = 4000
"""Of a broken answer, what the teacher is shown again."""

Structure = Literal["json_schema", "json_object", "none"]
TokenLimit = Literal["max_completion_tokens", "max_tokens"]


@dataclass(frozen=True)
class Dialect:
    """How a server wants to be spoken to; found out by what it refuses."""

    structure: Structure
    token_limit: TokenLimit

    def plainer(self) -> Dialect | None:
        """The next way to ask for JSON, where the server refuses this one."""
        after: dict[Structure, Structure] = {"json_schema": "json_object", "json_object": "none"}
        return replace(self, structure=after[self.structure]) if self.structure in after else None

    def other_limit(self) -> Dialect:
        other: TokenLimit = "max_tokens" if self.token_limit == "max_completion_tokens" else "max_completion_tokens"
        return replace(self, token_limit=other)


class TeacherQuestion:
    """What one teacher is asked of every image of a task. `where` is the teacher's key in the run file, for messages."""

    def __init__(self, teacher: Teacher, task: Task, folder: Path, where: str = "run.labeller.teacher") -> None:
        """`folder` is the run file's. Raises RunFileError for a prompt file that is not there or cannot be rendered, and for a
        class or field whose name is taken."""
        self.teacher = teacher
        self._kind = task.kind
        self._answers = AnswerSchema(task)
        self.schema = self._answers.schema
        values = {
            "task": task, "classes": task.classes, "fields": task.fields, "question": task.question, "no_class": NONE,
            "shape": self._answers.shape(), "schema": json.dumps(self.schema, ensure_ascii=False),
        }  # fmt: skip
        self.system = _rendered(where, "system", teacher.system_prompt, task.kind, folder, values)
        self.user = _rendered(where, "user", teacher.user_prompt, task.kind, folder, values)
        if not self.user:
            raise RunFileError(f"{where}.user_prompt: {teacher.user_prompt} renders to nothing; write what is asked of an image")
        self.prompt_sha256 = hashlib.sha256(canonical_json({"system": self.system, "user": self.user})).hexdigest()
        self.schema_sha256 = hashlib.sha256(json.dumps(self.schema).encode()).hexdigest()
        self.base_url = _checked_url(teacher.base_url or OPENAI_URL, where)
        """For people and for the key; the run file allows no password in it."""
        self.key = hashlib.sha256(canonical_json(self._what_changes_an_answer())).hexdigest()[:16]
        """Names the journal of the answers. The image is no part of it, its bytes are in every outcome's key."""

    def _what_changes_an_answer(self) -> dict[str, Any]:
        teacher = self.teacher
        return {
            "format": FORMAT, "prompt": self.prompt_sha256, "schema": self.schema_sha256, "model": teacher.model,
            "base_url": self.base_url, "temperature": teacher.temperature, "seed": teacher.seed,
            "max_answer_tokens": teacher.max_answer_tokens, "detail": teacher.detail, "structure": teacher.structure,
            **({"limits": limits} if (limits := self._answers.limits()) else {}),
        }  # fmt: skip

    def description(self) -> dict[str, Any]:
        """All that determines the answers, for people and audits; kept beside them as `question.json`."""
        return self._what_changes_an_answer() | {"system": self.system, "user": self.user, "schema": self.schema}

    def dialect(self) -> Dialect:
        """How to begin. OpenAI's newer models refuse `max_tokens`; other servers may silently ignore the newer name, and then an
        answer has no end."""
        structure: Structure = "json_schema" if self.teacher.structure == "auto" else self.teacher.structure
        return Dialect(structure, "max_completion_tokens" if self.teacher.base_url is None else "max_tokens")

    def body(self, jpeg: bytes, vote: int, dialect: Dialect | None = None) -> dict[str, Any]:
        """The request of a chat completion."""
        dialect, teacher = dialect or self.dialect(), self.teacher
        image = {"url": f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}"}
        if teacher.detail != "auto":  # the servers' own default, and not all know the key
            image["detail"] = teacher.detail
        content = [{"type": "text", "text": self.user}, {"type": "image_url", "image_url": image}]
        system = self._system(dialect)
        messages: list[dict[str, Any]] = [{"role": "system", "content": system}] if system else []
        body: dict[str, Any] = {"model": teacher.model, "messages": [*messages, {"role": "user", "content": content}]}
        body[dialect.token_limit] = teacher.max_answer_tokens
        if dialect.structure == "json_schema":
            schema = {"name": self._kind, "strict": True, "schema": self.schema}
            body["response_format"] = {"type": "json_schema", "json_schema": schema}
        elif dialect.structure == "json_object":
            body["response_format"] = {"type": "json_object"}
        if teacher.temperature is not None:
            body["temperature"] = teacher.temperature
        if teacher.seed is not None:
            body["seed"] = teacher.seed + vote
        return body

    def _system(self, dialect: Dialect) -> str:
        """With the schema, where the server is not told it otherwise."""
        schema = json.dumps(self.schema, ensure_ascii=False)
        if dialect.structure == "json_schema" or schema in self.system:
            return self.system
        return f"{self.system}\n\nThe JSON schema of the answer:\n{schema}".strip()

    def parse(self, text: str) -> dict[str, Any] | str:
        """The valid, cleaned answer in `text`; or why there is none."""
        return self._answers.parse(text)

    def repair(self, messages: Sequence[dict[str, Any]], text: str, why: str) -> list[dict[str, Any]]:
        """The messages of a second call, for an answer `text` that is not valid because of `why`."""
        ask = (
            f"That answer cannot be used: {clean_text(why, 300)}. Answer again, with one JSON object by this schema and nothing "
            f"else: {json.dumps(self.schema, ensure_ascii=False)}"
        )
        said = text.encode("utf-8", "replace").decode()[:REPAIR_CHARACTERS] or "(nothing)"
        return [*messages, {"role": "assistant", "content": said}, {"role": "user", "content": ask}]


def _checked_url(url: str, where: str) -> str:
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        usable = False
    if not usable:
        raise RunFileError(f"{where}.base_url: {clean_text(url, 200)} is no address; write it like http://vllm:8000/v1")
    return url.rstrip("/")


def _rendered(where: str, role: str, file: str | None, kind: str, folder: Path, values: dict[str, Any]) -> str:
    """Raises RunFileError. Templates come from run files, so they run in Jinja's sandbox, and no name may be unknown."""
    name = file or f"{kind}.{role}.jinja"
    try:
        text = (folder / file if file else files("pocketvlm.teacher") / "prompts" / name).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise RunFileError(f"{where}.{role}_prompt: {name} cannot be read ({reason}); "
                           "name a Jinja file, relative to the run file, or remove the key") from error  # fmt: skip
    environment = ImmutableSandboxedEnvironment(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    try:
        rendered = environment.from_string(text).render(values).strip()
    except Exception as error:  # a template can raise whatever its expressions do
        line = f", line {lineno}" if (lineno := getattr(error, "lineno", None)) else ""
        raise RunFileError(f"{where}.{role}_prompt: {name}{line}: {error}; it may use {', '.join(values)}") from error
    if len(rendered) > PROMPT_CHARACTERS:
        raise RunFileError(f"{where}.{role}_prompt: {name} renders to {len(rendered)} characters; at most {PROMPT_CHARACTERS}")
    return rendered
