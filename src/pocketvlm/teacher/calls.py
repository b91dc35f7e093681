"""The calls for one answer: tries, the one repair, and what came of them."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Mapping
from dataclasses import dataclass

import httpx2
import openai

from pocketvlm.errors import UserError
from pocketvlm.progress import Progress
from pocketvlm.teacher.answers import Outcome
from pocketvlm.teacher.completion import Asked, Bill, Completion, judge, read_completion
from pocketvlm.teacher.endpoint import Endpoint, is_bad_image, is_filtered, names
from pocketvlm.teacher.limiter import Call, Limiter
from pocketvlm.teacher.question import Dialect, TeacherQuestion
from pocketvlm.teacher.rate_headers import quota_of, retry_after_s
from pocketvlm.teacher.stats import Stats

BACKOFF_S, MOST_BACKOFF_S = 0.5, 20.0
IN_A_ROW = 20
"""Failures without any success between them, after which the breaker may open."""
ROW_S = 30.0
"""And they must span this time, pauses for quota not counted: a server restarts in less. At most half of the deadline."""
LONGEST_PAUSE_S = 3600.0
"""A server that wants to be left alone for longer has no quota left for today."""


class Breaker:
    """Opens when nothing but failures has come for a while."""

    def __init__(self, deadline_s: float) -> None:
        self._span_s = min(ROW_S, deadline_s / 2)
        self._failures, self._since_s = 0, 0.0

    def success(self) -> None:
        self._failures = 0

    def failure(self, now_s: float) -> bool:
        """Whether it is open; `now_s` by the limiter's clock."""
        if self._failures == 0:
            self._since_s = now_s
        self._failures += 1
        return self._failures >= IN_A_ROW and now_s - self._since_s >= self._span_s


@dataclass
class Item:
    """One answer to be had. `call` is the one that it holds; whoever has journalled the outcome releases it."""

    asked: Asked
    jpeg: bytes
    call: Call | None
    dialect: Dialect | None = None
    """Of the last call."""
    calling: bool = False
    """In a call that may be paid for."""
    spent_s: float = 0.0
    """In calls and between tries, waiting for quota not counted."""
    tries: int = 0
    repair: tuple[str, str] | None = None
    """The answer that was not valid, and why."""


class Caller:
    """Gets outcomes from the server; on one event loop."""

    def __init__(self, endpoint: Endpoint, question: TeacherQuestion, limiter: Limiter, stats: Stats,
                 progress: Progress) -> None:  # fmt: skip
        self._endpoint, self._question, self._limiter, self._stats = endpoint, question, limiter, stats
        self._progress = progress
        self._client = endpoint.connect()
        self._breaker = Breaker(endpoint.teacher.deadline_s)
        self._dialect = question.dialect()
        self._dice = random.Random()
        self.stopping = False
        """No new calls, retries neither."""
        self._warned = self._told_quota = False
        self._unread, self._read_any = 0, False
        """Images that the server could not read; whether it has read any."""

    async def close(self) -> None:
        await self._client.close()

    async def outcome(self, item: Item) -> Outcome:
        """All calls for one answer. Raises TeacherUnavailable, CredentialsError or UserError."""
        done = await self._answered(item)
        if isinstance(done, Outcome):
            return done
        text, why = done
        item.repair = text, why
        self._stats.repairs += 1
        done = await self._answered(item)
        return done if isinstance(done, Outcome) else item.asked.outcome("invalid", detail=self._endpoint.redacted(done[1]))

    async def _answered(self, item: Item) -> Outcome | tuple[str, str]:
        """An outcome, or an answer that is not valid and why."""
        failures = 0
        while True:
            response, error = await self._call(item)
            if response is not None and (completion := read_completion(response.content)) is not None:
                self._breaker.success()
                self._read_any = True
                return self._judged(item, response, completion)
            if isinstance(error, openai.APIStatusError):
                if (outcome := self._refused(item, error)) is not None:
                    return outcome
                if self._other_dialect(error, item.dialect):
                    continue
                if (fatal := self._endpoint.fatal(error)) is not None:
                    raise fatal
            said = self._endpoint.said(error) if error else "it answered with something that is no chat completion"
            await self._wait(item, error, said, failures)
            failures += 1
            self._stats.retries += 1

    async def _call(self, item: Item) -> tuple[httpx2.Response | None, openai.APIError | None]:
        """One call, and its news to the limiter. Neither: an answer that cannot be read."""
        self._check_going_on()
        if item.tries or item.call is None:
            if item.call is not None:
                self._limiter.release(item.call)
            item.call = await self._limiter.start()
        item.tries += 1
        self._stats.calls += 1
        item.dialect = self._dialect
        body = self._question.body(item.jpeg, item.asked.vote, item.dialect)
        if item.repair is not None:
            body["messages"] = self._question.repair(body["messages"], *item.repair)
        began, item.calling = time.monotonic(), True
        try:
            async with asyncio.timeout(self._endpoint.teacher.timeout_s):
                return await self._client.post("/chat/completions", cast_to=httpx2.Response, body=body), None
        except openai.APIStatusError as error:
            limited = error.status_code in (429, 503)
            (self._limiter.limited if limited else self._limiter.failed)(item.call, error.response.headers)
            return None, error
        except openai.APIConnectionError as error:
            return None, error
        except TimeoutError:
            return None, openai.APITimeoutError(request=httpx2.Request("POST", "http://teacher"))
        finally:
            item.calling = False
            item.spent_s += time.monotonic() - began

    def _judged(self, item: Item, response: httpx2.Response, completion: Completion) -> Outcome | tuple[str, str]:
        assert item.call is not None
        self._tell_quota(response.headers)
        bill = completion.usage or Bill()
        self._limiter.succeeded(item.call, response.headers, bill.prompt_tokens + bill.completion_tokens)
        if completion.usage is None and self._endpoint.teacher.price is not None and not self._warned:
            self._warned = True
            self._progress.warn(f"{self._endpoint.name} does not say how many tokens a call has used: its cost is not counted")
        request_id = response.headers.get("x-request-id", "")
        return judge(item.asked, completion, request_id, self._question, self._endpoint.redacted, batched=False)

    def _tell_quota(self, headers: Mapping[str, str]) -> None:
        """Once: it says why a run takes the time that it takes."""
        quotas = [f"{quota.limit:,.0f} {what}" for what in ("requests", "tokens") if (quota := quota_of(headers, what))]
        if quotas and not self._told_quota:
            self._told_quota = True
            self._progress.line(f"{self._endpoint.name} allows {' and '.join(quotas)} a minute")

    def _refused(self, item: Item, error: openai.APIStatusError) -> Outcome | None:
        """Of this one image, for good, and not billed."""
        if is_filtered(error) or is_bad_image(error):
            self._breaker.success()
            self._unread += is_bad_image(error)
            if self._unread >= IN_A_ROW and not self._read_any:
                raise UserError(f"{self._endpoint.name} can read none of our images ({self._endpoint.said(error)}); "
                                "name a model in teacher.model that takes images")  # fmt: skip
            item.asked.request_id = self._endpoint.redacted(error.request_id or "")
            kind = "filtered" if is_filtered(error) else "invalid"
            return item.asked.outcome(kind, detail=self._endpoint.said(error))
        return None

    def _other_dialect(self, error: openai.APIStatusError, used: Dialect | None) -> bool:
        """Whether to try again at once, in another way than the one that was `used`."""
        about_limit = names(error, "max_tokens", "max_completion_tokens")
        about_structure = names(error, "response_format", "json_schema", "json_object")
        if (about_limit or about_structure) and used != self._dialect:
            return True  # somebody has learnt it since
        if about_limit and self._dialect.token_limit == self._question.dialect().token_limit:
            self._dialect = self._dialect.other_limit()
            return True
        plainer = self._dialect.plainer()
        if about_structure and self._endpoint.teacher.structure == "auto" and plainer is not None:
            self._dialect = plainer
            self._progress.line(f"{self._endpoint.name} takes no response_format like that; structure is now {plainer.structure}")
            return True
        return False

    async def _wait(self, item: Item, error: openai.APIError | None, said: str, failures: int) -> None:
        """Between two tries. Raises TeacherUnavailable at the item's deadline, and when all fails."""
        teacher = self._endpoint.teacher
        self._check_going_on()
        if self._breaker.failure(self._limiter.active_s()):
            raise self._endpoint.unavailable(f"nothing but errors for a while, the last one: {said}")
        headers = error.response.headers if isinstance(error, openai.APIStatusError) else {}
        asked_s = retry_after_s(headers) or None  # "at once" is no pause
        if asked_s is not None and asked_s > LONGEST_PAUSE_S:
            raise self._endpoint.unavailable(f"it asks to come back in {asked_s / 3600:.1f} hours ({said})")
        jitter_s = self._dice.uniform(0, min(MOST_BACKOFF_S, BACKOFF_S * 2.0**failures))
        if item.spent_s > teacher.deadline_s:
            raise self._endpoint.unavailable(f"no answer for image {item.asked.image[:16]} in {teacher.deadline_s:g} s "
                                             f"and {item.tries} tries, the last one: {said}")  # fmt: skip
        if asked_s is None:
            jitter_s = min(jitter_s, teacher.deadline_s - item.spent_s)  # the last try is at the deadline, not long before it
            item.spent_s += jitter_s
        if item.call is not None:
            self._limiter.release(item.call)
        await asyncio.sleep(jitter_s if asked_s is None else asked_s + min(jitter_s, 0.25 * asked_s))

    def _check_going_on(self) -> None:
        if self.stopping:
            raise self._endpoint.unavailable("another call failed for good")
