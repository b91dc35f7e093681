"""What a chat completion means for one answer, whether it came by a live call or in a batch."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel, ValidationError

from pocketvlm.teacher.answers import Outcome, Usage
from pocketvlm.teacher.question import TeacherQuestion


class Details(BaseModel):
    cached_tokens: int | None = None


class Bill(BaseModel):
    prompt_tokens: int = 0
    completion_tokens: int = 0
    prompt_tokens_details: Details | None = None


class Message(BaseModel):
    content: str | None = None
    refusal: str | None = None


class Choice(BaseModel):
    message: Message = Message()
    finish_reason: str | None = None


class Completion(BaseModel):
    """As much as is used of what a server answers; a stranger's data."""

    id: str = ""
    model: str = ""
    choices: list[Choice] = []
    usage: Bill | None = None


def read_completion(data: bytes | Any) -> Completion | None:
    """From JSON, or from what JSON was read to; None: it is no chat completion."""
    try:
        completion = Completion.model_validate_json(data if isinstance(data, bytes) else _utf8(data))
    except ValidationError:
        try:  # halves of surrogate pairs are no text to pydantic, but the answer is paid for
            completion = Completion.model_validate_json(_utf8(json.loads(data) if isinstance(data, bytes) else data))
        except (ValueError, RecursionError):  # the first is pydantic's base too
            return None
    return completion if completion.choices or completion.usage else None


def _utf8(data: Any) -> bytes:
    return json.dumps(data, ensure_ascii=False).encode("utf-8", "replace")


@dataclass
class Asked:
    """One answer to be had, and what its calls have cost so far."""

    image: str
    vote: int
    billed: int = 0
    usage: Usage = field(default_factory=Usage)
    model: str = ""
    request_id: str = ""

    def outcome(self, kind: Any, **more: Any) -> Outcome:
        return Outcome(
            image=self.image, vote=self.vote, kind=kind, model=self.model, request_id=self.request_id, usage=self.usage,
            calls=self.billed, **more,
        )  # fmt: skip

    def pay(self, bill: Bill, *, batched: bool) -> None:
        """Adds a call."""
        cached = (bill.prompt_tokens_details.cached_tokens or 0) if bill.prompt_tokens_details else 0
        before = self.usage
        self.usage = Usage(
            input_tokens=before.input_tokens + bill.prompt_tokens,
            cached_input_tokens=before.cached_input_tokens + min(cached, bill.prompt_tokens),
            output_tokens=before.output_tokens + bill.completion_tokens, batched=batched,
        )  # fmt: skip
        self.billed += 1


def judge(
    asked: Asked, completion: Completion, request_id: str, question: TeacherQuestion, redacted: Callable[[str], str], *,
    batched: bool,
) -> Outcome | tuple[str, str]:
    """Counts the bill, then reads the answer: an outcome, or a text that is not valid and why."""
    asked.pay(completion.usage or Bill(), batched=batched)
    asked.model = redacted(completion.model)
    asked.request_id = redacted(request_id or completion.id)
    choice = completion.choices[0] if completion.choices else Choice()
    if choice.message.refusal:
        return asked.outcome("refused", detail=redacted(choice.message.refusal))
    if choice.finish_reason == "content_filter":
        return asked.outcome("filtered", detail="the teacher's content filter stopped the answer")
    if choice.finish_reason == "length":
        most = question.teacher.max_answer_tokens
        return asked.outcome("cut_off", detail=f"the answer is longer than teacher.max_answer_tokens ({most})")
    text = choice.message.content or ""
    answer = question.parse(text)
    return asked.outcome("answer", answer=answer) if isinstance(answer, dict) else (text, answer)
