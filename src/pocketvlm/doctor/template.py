"""What stands around the image in a prompt: the chat template of a model, and a prompt.txt beside it.

Hugging Face's template of SmolVLM writes `User:<image>`, llama.cpp's own `User: <image>`. The space is a token that
training never saw there: it moves answers by up to 0.03 nats, where rounding to bf16 moves them by 0.006.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import NoReturn

from jinja2 import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from pocketvlm.doctor.finding import Finding

MEDIA, IMAGE, START, END = "<__media__>", "<image>", "<|im_start|>", "<end_of_utterance>"
SPACE = re.compile(r"[ \t]+(<image>|<__media__>)")
SPACE_EFFECT = "the phone's prompt has a token before the image that training did not have; answers move by up to 0.03 nats"
MARKER_EFFECT = "llama.cpp replaces this marker by the image, so the model was trained on a text that it never sees on the phone"
CONVERSATION = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is this?"}]}]


class _Refused(Exception):
    """The template's own `raise_exception`."""


def check_template(template: str, where: str, *, idefics3: bool) -> Iterator[Finding]:
    """Faults of a chat template. Only Idefics3's layout (SmolVLM too) is known well enough to judge its spaces."""
    if MEDIA in template:
        yield Finding("media-marker", "fault", where, f"holds {MEDIA}", MARKER_EFFECT,
                      f"take it out of the template, write {IMAGE} through an image message, and train again")  # fmt: skip
    said = render_user_turn(template) if idefics3 else None
    if said and SPACE.search(said):
        yield Finding("template-space", "fault", where, f"writes {_around(said)!r}, with a space before the image", SPACE_EFFECT,
                      "write `User:` without a space where an image comes first, as the published template does")  # fmt: skip


def render_user_turn(template: str) -> str | None:
    """One question with the image first, as the template writes it; None when it cannot be rendered."""

    def refuse(message: str) -> NoReturn:
        raise _Refused(message)

    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.globals["raise_exception"] = refuse
    try:
        return environment.from_string(template).render(
            messages=CONVERSATION, add_generation_prompt=True, bos_token=START, eos_token=END
        )
    except (TemplateError, _Refused, TypeError, ValueError, LookupError, AttributeError, ArithmeticError):
        return None


def check_tokens(tokens: Iterable[str], where: str) -> Iterator[Finding]:
    """Whether the marker became a token of its own."""
    if MEDIA in tokens:
        yield Finding("media-marker", "fault", where, f"{MEDIA} is a token of the vocabulary", MARKER_EFFECT,
                      "train again from a tokenizer without it, on prompts without the text")  # fmt: skip


def check_prompt(prompt: str, where: str, *, idefics3: bool) -> Iterator[Finding]:
    """Faults of a prompt.txt."""
    count = prompt.count(MEDIA)
    if count != 1:
        yield Finding("prompt-marker", "fault", where, f"has {MEDIA} {count} times",
                      "llama.cpp wants as many markers as images, and refuses one photo", f"write {MEDIA} once")  # fmt: skip
    if IMAGE in prompt:
        yield Finding("prompt-marker", "fault", where, f"holds {IMAGE}",
                      "llama.cpp takes it for a token of an image that is not there", f"write {MEDIA} where the image goes")
    if idefics3 and SPACE.search(prompt):
        yield Finding("template-space", "fault", where, f"has {_around(prompt)!r}, with a space before the image", SPACE_EFFECT,
                      f"write `User:{MEDIA}`, if training did")  # fmt: skip
    if idefics3 and END not in prompt:
        yield Finding("prompt-wrapper", "warning", where, f"has no {END}",
                      "the turn of the user does not end as in training; answers drift and may not end",
                      f"end the question with `{END}\\nAssistant:`, if training did")  # fmt: skip


def _around(text: str) -> str:
    found = SPACE.search(text)
    assert found, "only called where it was found"
    return text[max(0, found.start() - 8) : found.end()]
