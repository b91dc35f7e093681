"""What a server says of its quota: `x-ratelimit-*` and `Retry-After`, as OpenAI and its kin write them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

UNITS_S = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")


@dataclass(frozen=True)
class Quota:
    """One quantity, as it stood when the server wrote it."""

    limit: float
    """A minute."""
    remaining: float | None
    reset_s: float | None
    """Until it is whole again."""


def quota_of(headers: Mapping[str, str], what: str) -> Quota | None:
    """`what` is `requests` or `tokens`. None: the server does not say, or says nonsense. Keys of `headers` are lower-case, or
    found in any case."""
    limit = _number(headers.get(f"x-ratelimit-limit-{what}"))
    if limit is None or limit <= 0:
        return None
    remaining = _number(headers.get(f"x-ratelimit-remaining-{what}"))
    return Quota(limit, remaining, duration_s(headers.get(f"x-ratelimit-reset-{what}")))


def duration_s(text: str | None) -> float | None:
    """Seconds of `6m0s`, `1.5s`, `120ms`, or of a plain number of seconds; None for what is neither."""
    if text is None:
        return None
    text = text.strip()
    if (number := _number(text)) is not None:
        return number
    parts = _PART.findall(text)
    if not parts or "".join(number + unit for number, unit in parts) != text:
        return None
    return sum(float(number) * UNITS_S[unit] for number, unit in parts)


def retry_after_s(headers: Mapping[str, str], now: datetime | None = None) -> float | None:
    """Seconds that the server wants to be left alone, from `retry-after-ms` or `Retry-After` (seconds or a date); None if it does
    not say."""
    if (milliseconds := _number(headers.get("retry-after-ms"))) is not None:
        return milliseconds / 1000
    text = headers.get("retry-after")
    if text is None:
        return None
    if (seconds := _number(text)) is not None:
        return seconds
    try:
        date = parsedate_to_datetime(text)
    except ValueError:
        return None
    date = date if date.tzinfo else date.replace(tzinfo=UTC)
    return max(0.0, (date - (now or datetime.now(UTC))).total_seconds())


def _number(text: str | None) -> float | None:
    """A finite number of at least 0."""
    if text is None or not re.fullmatch(r"\s*\d{1,15}(\.\d{1,9})?\s*", text):
        return None
    return float(text)
