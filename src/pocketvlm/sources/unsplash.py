"""Photographs of Unsplash, by its search API or from its Lite dataset.

What a search finds changes from day to day, so it is kept in the store as it was first found: every process and every rerun
goes by the same list. A larger `limit` only adds to its end.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from functools import cached_property, partial
from itertools import islice
from urllib.parse import urlsplit

from pocketvlm.errors import RunFileError
from pocketvlm.run_file import UnsplashSource
from pocketvlm.sources.record import Context, Problem, Record, SourceReader
from pocketvlm.sources.turns import in_turn, untaken
from pocketvlm.sources.unsplash_api import PER_PAGE, Clock, UnsplashApi, found
from pocketvlm.sources.unsplash_lite import Lite
from pocketvlm.sources.unsplash_photo import Photo, attributed, attribution, image_url
from pocketvlm.sources.web.fetch import Fetcher

IMAGE_HOST = "images.unsplash.com"
LICENCE = "Unsplash License (https://unsplash.com/license)"
LITE_LICENCE = "Unsplash Data License, Lite (https://unsplash.com/data-terms)"
"""It allows training, and commercial use of what was trained; passing the images on it does not allow."""
QUOTAS = {"demo": 50, "production": 5000}
"""Requests an hour."""
IMAGE_BYTES_PER_PX2 = 0.2
"""Of a JPEG at quality 85, roughly."""


class Unsplash(SourceReader):
    """Photographs of the queries in turn, each once."""

    PIECE_RECORDS = 16
    """With a demo key a piece takes 20 minutes of quota, and what a killed process had of it costs quota again."""

    def __init__(self, source: UnsplashSource, context: Context, clock: Clock | None = None) -> None:
        """`clock` is for tests. Raises RunFileError: no teacher, or no Lite dataset where it should be."""
        if context.labelled:
            raise RunFileError("run.labeller.source: images of unsplash have no labels of your classes; add run.labeller.teacher")
        self._source = source
        self._context = context
        self._lite = None if source.lite is None else Lite(context.folder / source.lite, source.lite)
        self._api = UnsplashApi(source, context, clock or Clock())

    def fingerprint(self) -> str:
        source = self._source
        of_kind: list[object] = [source.api_url, source.orientation, source.content_filter, source.snapshot]
        if self._lite:
            of_kind = [self._lite.fingerprint(), source.min_keyword_confidence]
        decides = [source.queries, source.limit, source.width_px, source.application, *of_kind]
        return hashlib.sha256(json.dumps(["unsplash", 1, *decides]).encode()).hexdigest()

    def __len__(self) -> int:
        return len(self._chosen)

    def records(self, places: range) -> Iterator[Record]:
        photos = [self._chosen[place] for place in places]
        urls = [image_url(photo, self._source.width_px) for photo in photos]
        with self._fetcher() as fetcher:
            for photo, data in zip(photos, fetcher.get_all(urls), strict=True):
                yield self._record(photo, data, fetcher)

    def expected(self) -> int:
        return self._source.limit

    def plan_lines(self) -> list[str]:
        """What is taken, what it costs in quota and time, and what the terms say."""
        source = self._source
        queries = _counted(len(source.queries), "query", "queries")
        words = f"up to {source.limit} photographs by {queries} in turn, {source.width_px} px wide"
        size = f"downloads about {source.limit * source.width_px**2 * IMAGE_BYTES_PER_PX2 / 1e6:,.0f} MB of images"
        if self._lite:
            return [f"{words}, from the Lite dataset in {source.lite}; no key, no quota", size,
                    f"{LITE_LICENCE}: training is allowed, passing the images on is not"]  # fmt: skip
        searches, requests = requests_needed(source)
        times = (f"{_hours(waiting_h(requests, quota))} with a {kind} key ({quota:,} an hour)" for kind, quota in QUOTAS.items())
        lines = [
            f"{words}, from the search API; what it finds is kept in the store as snapshot `{source.snapshot}`",
            size,
            f"{_counted(searches, 'search', 'searches')} and {source.limit} calls for downloads are {requests} requests: "
            f"{', '.join(times)}",
            "Unsplash's terms give the API to use that is not automated; for more than a few photographs they point to the "
            "dataset (unsplash.com/data): unpack it and set run.labeller.source.lite",
        ]
        if self._context.environment.unsplash_key is None:
            lines.append("UNSPLASH_ACCESS_KEY is not set; the labeller needs it")
        return lines

    @cached_property
    def _chosen(self) -> Sequence[Photo]:
        if self._lite:
            photos = self._lite.choose(self._source, self._context.progress)
            return list(islice(photos, self._source.limit))
        with self._fetcher() as fetcher:
            return list(islice(self._search(fetcher), self._source.limit))

    def _search(self, fetcher: Fetcher) -> Iterator[Photo]:
        """Everything that the queries find, each once."""
        store = self._context.store
        assert store is not None, "a search is kept in the store"
        taken: set[str] = set()
        ask = partial(self._api.search, fetcher)
        return in_turn([
            untaken(((photo.id, photo) for photo in found(self._source, query, store, ask)), taken)
            for query in dict.fromkeys(self._source.queries)
        ])  # fmt: skip

    def _record(self, photo: Photo, data: bytes | Problem, fetcher: Fetcher) -> Record:
        source_id = f"unsplash/{photo.id}"
        if isinstance(data, Problem):
            return Record(source_id, problem=data)
        # Only now, so that quota is spent on what was really downloaded.
        if photo.download and not self._api.count_download(fetcher, photo):
            return Record(source_id, problem=Problem("withdrawn", "Unsplash has this photograph no more"))
        application = self._source.application
        return Record(
            source_id,
            data,
            url=attributed(photo.page, application),
            author=attribution(photo, application),
            licence=LITE_LICENCE if self._lite else LICENCE,
        )

    def _fetcher(self) -> Fetcher:
        api = [] if self._lite else [urlsplit(self._source.api_url).netloc]
        return Fetcher(self._source.fetch, {IMAGE_HOST, *api})


def requests_needed(source: UnsplashSource) -> tuple[int, int]:
    """Searches, and requests in all, if every query finds enough and nothing is in the store yet."""
    queries = len(set(source.queries))
    pages = [math.ceil(len(range(place, source.limit, queries)) / PER_PAGE) for place in range(queries)]
    return sum(pages), sum(pages) + source.limit


def waiting_h(requests: int, quota_per_h: int) -> int:
    """Hours until the last of these requests may be sent, where nobody else uses the quota."""
    return (requests - 1) // quota_per_h


def _counted(number: int, one: str, many: str) -> str:
    return f"{number} {one if number == 1 else many}"


def _hours(waiting: int) -> str:
    return f"{waiting} h of waiting" if waiting else "no waiting"
