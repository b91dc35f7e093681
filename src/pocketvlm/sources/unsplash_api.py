"""Unsplash's API: a quota of requests an hour, searches whose results are kept in the store, and a call for each download.

The quota counts requests to the API, not those to the image server. Its headers say how many requests are left, not when
more will come, so the times of our own requests say that: when the first of the last `limit` is an hour old, in whichever way
Unsplash counts its hours.
"""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import count
from typing import Any
from urllib.parse import urlencode, urlsplit

from pydantic import BaseModel, ConfigDict, ValidationError

from pocketvlm.artifacts.manifest import canonical_json
from pocketvlm.artifacts.store import KeyMissing, Store
from pocketvlm.errors import Corrupt, CredentialsError, SourceUnavailable
from pocketvlm.progress import Progress, duration
from pocketvlm.run_file import UnsplashSource
from pocketvlm.sources.record import Context
from pocketvlm.sources.unsplash_photo import Photo
from pocketvlm.sources.web.fetch import Fetcher, Response

PER_PAGE = 30
"""Most photographs of one search."""
HOUR_S = 3600.0
MARGIN_S = 2.0
"""Unsplash's clock is not ours."""
POLL_S = 600.0
"""Time between two tries where others use the quota too, so that our own requests do not say when it returns."""
FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 30.0
"""Between tries where the server has a fault."""
PATIENCE_S = 2 * HOUR_S
"""A quota of an hour that has not returned by then will not return."""


@dataclass(frozen=True)
class Clock:
    """Time, in seconds since 1970, and how it is spent."""

    now: Callable[[], float] = time.time
    sleep: Callable[[float], None] = time.sleep


class Quota:
    """When the next request may be sent, by the headers of those before. Not thread-safe."""

    def __init__(self, progress: Progress, clock: Clock) -> None:
        self._progress = progress
        self._clock = clock
        self._sent: deque[float] = deque(maxlen=100_000)
        self._free_at = 0.0
        self._refused_since: float | None = None

    def wait(self) -> None:
        """Returns when a request may be sent; says how long it waits."""
        while (left := self._free_at - self._clock.now()) > 0:
            self._progress.line(f"Unsplash's quota of this hour is used up; waiting {duration(left)}, "
                                f"until {time.strftime('%H:%M:%S', time.localtime(self._free_at))}")  # fmt: skip
            self._clock.sleep(left)

    def note(self, headers: Mapping[str, str]) -> None:
        """A request was answered."""
        now = self._clock.now()
        self._sent.append(now)
        self._refused_since = None
        limit, remaining = _number(headers, "x-ratelimit-limit"), _number(headers, "x-ratelimit-remaining")
        if remaining != 0:
            return
        oldest = self._sent[-limit] if limit and limit <= len(self._sent) else None
        back = oldest + HOUR_S + MARGIN_S if oldest is not None else 0.0
        self._free_at = back if back > now else self._guess(now)

    def refuse(self) -> None:
        """A request was refused for want of quota. Raises SourceUnavailable when that has gone on for too long."""
        now = self._clock.now()
        self._refused_since = now if self._refused_since is None else self._refused_since
        if now - self._refused_since > PATIENCE_S:
            raise SourceUnavailable("Unsplash has refused every request of the last two hours for want of quota; look at your "
                                    "application at unsplash.com/oauth/applications, then start again")
        self._free_at = self._guess(now)

    def _guess(self, now: float) -> float:
        """Others use the quota too. Many say that it returns with the full hour; else a look now and then."""
        full_hour = (now // HOUR_S + 1) * HOUR_S + MARGIN_S
        return min(full_hour, now + POLL_S)


class UnsplashApi:
    """The API with our key. Thread-safe: one request at a time, since the headers of one say whether there may be another."""

    def __init__(self, source: UnsplashSource, context: Context, clock: Clock) -> None:
        self._url = source.api_url.rstrip("/")
        self._key = context.environment.unsplash_key
        self._deadline_s = source.fetch.deadline_s
        self._clock = clock
        self._quota = Quota(context.progress, clock)
        self._lock = threading.Lock()

    def search(self, fetcher: Fetcher, parameters: Mapping[str, str]) -> Any:
        """One page of a search. Raises CredentialsError or SourceUnavailable."""
        response = self._ask(fetcher, f"{self._url}/search/photos?{urlencode(parameters)}")
        if response.status != 200:
            raise _unexpected(response, "a search")
        try:
            return json.loads(response.body)
        except ValueError as error:
            raise SourceUnavailable(f"Unsplash answered a search with what is no JSON: {error}; start again later") from error

    def count_download(self, fetcher: Fetcher, photo: Photo) -> bool:
        """Tells Unsplash of a download, as its terms ask. False: it has no such photograph any more. Raises as `search` does."""
        assert photo.download is not None
        # The address comes from an answer; the key must not go anywhere else.
        if urlsplit(photo.download)[:2] != urlsplit(self._url)[:2]:
            raise SourceUnavailable(f"Unsplash's download_location of {photo.id} is not at {self._url}; set "
                                    "run.labeller.source.api_url to where the API is")
        response = self._ask(fetcher, photo.download)
        if response.status not in (200, 404, 410):
            raise _unexpected(response, "the call for a download")
        return response.status == 200

    def _ask(self, fetcher: Fetcher, url: str) -> Response:
        if self._key is None:
            raise CredentialsError("Unsplash needs a key: set UNSPLASH_ACCESS_KEY, or UNSPLASH_ACCESS_KEY_FILE to a file with "
                                   "it; you get one at unsplash.com/developers")
        headers = {"Authorization": f"Client-ID {self._key.get_secret_value()}", "Accept-Version": "v1"}
        with self._lock:
            response = self._answered(fetcher, url, headers)
        if response.status in (401, 403):
            raise CredentialsError(f"Unsplash refused the key in UNSPLASH_ACCESS_KEY ({response.status}: {_text(response)}); "
                                   "set the Access Key of your application")
        return response


    def _answered(self, fetcher: Fetcher, url: str, headers: Mapping[str, str]) -> Response:
        """The first answer that is neither for want of quota nor a server's fault."""
        pause, paused = FIRST_PAUSE_S, 0.0
        while True:
            self._quota.wait()
            response = fetcher.request(url, headers)
            if _no_quota(response):
                self._quota.refuse()
                continue
            self._quota.note(response.headers)
            if response.status < 500:
                return response
            if paused + pause > self._deadline_s:
                raise _unexpected(response, f"for {self._deadline_s:g} s")
            self._clock.sleep(pause)
            paused, pause = paused + pause, min(2 * pause, LONGEST_PAUSE_S)


class _Links(BaseModel):
    html: str
    download_location: str | None = None


class _User(BaseModel):
    name: str
    links: _Links


class _Urls(BaseModel):
    raw: str


class _Result(BaseModel):
    """A photograph as the API gives it, of which most is passed over."""

    id: str
    urls: _Urls
    links: _Links
    user: _User
    alt_description: str | None = None
    premium: bool | None = None
    plus: bool | None = None

    def photo(self) -> Photo:
        return Photo(id=self.id, image=self.urls.raw, page=self.links.html, author=self.user.name, profile=self.user.links.html,
                     download=self.links.download_location, alt=self.alt_description)  # fmt: skip


class _Page(BaseModel):
    results: list[_Result]
    total_pages: int


class _Kept(BaseModel):
    """A page in the store."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    photos: list[Photo]
    last: bool


def found(source: UnsplashSource, query: str, store: Store, ask: Callable[[Mapping[str, str]], Any]) -> Iterator[Photo]:
    """What a search finds, page by page as it is needed, each from the store if anybody has asked for it before.

    `ask` gets a page from the API. Raises as it does.
    """
    fixed = {"query": query, "per_page": str(PER_PAGE), "order_by": "relevant", "content_filter": source.content_filter}
    if source.orientation != "any":
        fixed["orientation"] = source.orientation
    name = hashlib.sha256(json.dumps([source.api_url, sorted(fixed.items())]).encode()).hexdigest()[:16]
    for number in count(1):
        key = f"listings/{name}/{source.snapshot}/{number:04d}.json"
        page = _kept(store, key) or _keep(store, key, number, ask({**fixed, "page": str(number)}))
        yield from page.photos
        if page.last:
            return


def _kept(store: Store, key: str) -> _Kept | None:
    """Raises Corrupt."""
    try:
        return _Kept.model_validate_json(store.read(key))
    except KeyMissing:
        return None
    except ValidationError as error:
        raise Corrupt(f"{store.url}/{key}: is no page of a search; delete it, or set another "
                      "run.labeller.source.snapshot") from error


def _keep(store: Store, key: str, number: int, answer: Any) -> _Kept:
    """The page of whoever was first to keep it, so that every process goes by the same list. Raises SourceUnavailable."""
    try:
        page = _Page.model_validate(answer)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise SourceUnavailable(f"Unsplash answered a search with something else than photographs: {where}: {first['msg']}; "
                                "start again later") from error
    # Photographs of Unsplash+ are under another licence.
    photos = [result.photo() for result in page.results if not (result.premium or result.plus)]
    mine = _Kept(photos=photos, last=not page.results or number >= page.total_pages)
    if store.create(key, canonical_json(mine.model_dump(mode="json"))):
        return mine
    return _kept(store, key) or mine


def _number(headers: Mapping[str, str], name: str) -> int | None:
    value = headers.get(name, "")
    return int(value) if value.isascii() and value.isdigit() else None


def _no_quota(response: Response) -> bool:
    """The API says 403 with a plain `Rate Limit Exceeded`; 429 is what others say."""
    if response.status == 429:
        return True
    spent = b"rate limit" in response.body.lower() or response.headers.get("x-ratelimit-remaining") == "0"
    return response.status == 403 and spent


def _text(response: Response) -> str:
    return " ".join(response.body[:200].decode("utf-8", "replace").split()) or "no text"


def _unexpected(response: Response, what: str) -> SourceUnavailable:
    return SourceUnavailable(f"Unsplash answered {what} with {response.status}: {_text(response)}; start again later")
