"""The server of a teacher: the `openai` client that speaks to it, and what its errors mean for who must act."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from pydantic import SecretStr

from pocketvlm.errors import CredentialsError, PocketVLMError, TeacherUnavailable, UserError
from pocketvlm.run_file import Teacher
from pocketvlm.teacher.question import OPENAI_URL
from pocketvlm.teacher.schema import clean_text

if TYPE_CHECKING:
    import openai

NO_KEY = "none"
"""Sent to servers of one's own that ask for no key."""
DETAIL_CHARACTERS = 300
RETRIED = (408, 409, 425, 429)
"""With 5xx: another try may fare better."""
_SECRETS = re.compile(r"\b(sk|Bearer|Basic)[-_ ][\w*.~+/=-]{6,}")


class Endpoint:
    """Where a teacher is."""

    def __init__(self, teacher: Teacher, key: SecretStr | None) -> None:
        """Raises CredentialsError when OpenAI's own endpoint is meant and there is no key."""
        if key is None and teacher.base_url is None:
            raise CredentialsError(
                f"the teacher {teacher.model} is at {OPENAI_URL}, which needs a key; set OPENAI_API_KEY, or OPENAI_API_KEY_FILE "
                "to a file that holds it (POCKETVLM_SECOND_TEACHER_API_KEY for second_teacher), or name another base_url"
            )
        self.teacher = teacher
        self._key = NO_KEY if key is None else key.get_secret_value()
        if not re.fullmatch(r"[!-~]+", self._key):
            raise CredentialsError(f"the key of teacher {teacher.model} is empty or holds what no key holds (spaces, line "
                                   "breaks, other alphabets); check OPENAI_API_KEY or OPENAI_API_KEY_FILE")  # fmt: skip
        self.name = f"teacher {teacher.model} at {(teacher.base_url or OPENAI_URL).rstrip('/')}"
        """For messages."""

    def connect(self) -> openai.AsyncOpenAI:
        """A client that retries nothing, follows no redirect and takes nothing of OPENAI_* from the environment."""
        import openai

        teacher = self.teacher
        http = openai.DefaultAsyncHttpxClient(
            follow_redirects=False, timeout=teacher.timeout_s, limits=_limits(teacher.in_flight)
        )
        client = openai.AsyncOpenAI(
            api_key=self._key, admin_api_key="", webhook_secret="", base_url=teacher.base_url or OPENAI_URL, max_retries=0,
            timeout=teacher.timeout_s, http_client=http,
        )  # fmt: skip
        # The constructor reads these from OPENAI_ORG_ID, OPENAI_PROJECT_ID and OPENAI_CUSTOM_HEADERS, whatever it is given.
        client.organization = client.project = None
        client._custom_headers = {}
        return client

    def said(self, error: openai.APIError) -> str:
        """The server's message, without keys."""
        body = error.body
        message = body.get("message") if isinstance(body, dict) else None
        text = str(message or error.message)
        status = getattr(error, "status_code", None)
        return self.redacted(f"{status}: {text}" if status else _with_cause(error))

    def redacted(self, text: str) -> str:
        """One line without keys, cut to a length for messages and records."""
        if self._key != NO_KEY:
            text = text.replace(self._key, "[key]")
        return clean_text(_SECRETS.sub("[key]", text), DETAIL_CHARACTERS)

    def fatal(self, error: openai.APIStatusError) -> PocketVLMError | None:
        """What an error means that no other try can mend; None: try again."""
        status, said = error.status_code, self.said(error)
        if status in (401, 403):
            return CredentialsError(f"{self.name} refused the key ({said}); check OPENAI_API_KEY or OPENAI_API_KEY_FILE "
                                    "(POCKETVLM_SECOND_TEACHER_API_KEY for second_teacher)")  # fmt: skip
        if status == 429 and "insufficient_quota" in (error.code, error.type):
            return UserError(f"{self.name}: its account has no credit left ({said}); add credit and run again: what was answered "
                             "is kept")  # fmt: skip
        if status in RETRIED or status >= 500:
            return None
        hints = {
            404: "check teacher.model and teacher.base_url",
            413: "lower teacher.image_px",
        }
        hint = hints.get(status, "change the setting of teacher that it names")
        if 300 <= status < 400:
            where = self.redacted(error.response.headers.get("location", "another place"))
            hint = f"it sends us to {where}; check teacher.base_url"
        return UserError(f"{self.name} refused the call ({said}); {hint}")

    def unavailable(self, why: str) -> TeacherUnavailable:
        return TeacherUnavailable(f"{self.name}: {why}; start again to go on: what was answered is kept")


def is_filtered(error: openai.APIStatusError) -> bool:
    """A content filter refused the prompt, image included."""
    return error.status_code == 400 and "content_filter" in (error.code, error.type)


def is_bad_image(error: openai.APIStatusError) -> bool:
    """The server cannot read this one image."""
    return error.status_code in (400, 415, 422) and "image" in f"{error.code} {error.type}".lower()


def names(error: openai.APIStatusError, *words: str) -> bool:
    """Whether a 400 (or 422, as some servers say it) is about one of these parameters."""
    if error.status_code not in (400, 422):
        return False
    text = f"{error.param} {error.message} {error.body}".lower()
    return any(word in text for word in words)


def _limits(in_flight: int) -> Any:
    import httpx2

    # Many servers (uvicorn) close a connection that was idle for 5 s; a call on its way there would be lost.
    return httpx2.Limits(max_connections=in_flight + 4, max_keepalive_connections=in_flight + 4, keepalive_expiry=4)


def _with_cause(error: openai.APIError) -> str:
    cause = error.__cause__
    return f"{error.message} {type(cause).__name__}: {cause}" if cause is not None else error.message
