"""Unsplash's API and its image server: `python tests/sources/serve_unsplash.py --port 0 --key KEY --quota 5000`.

`/search/photos`, `/photos/ID/download` and `/photo-ID` (the image), on one port. What a query finds follows from its words.
The quota is enforced as Unsplash says it is, and every call is counted. Prints its address, then the settings that a run file
needs, as JSON.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import json
import math
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

sys.path.insert(0, str(Path(__file__).parent))

from fixture_http import PALETTE, Answer, FixtureServer, arguments, draw, plant

HOUR_S = 3600
LITE_PHOTO_COLUMNS = ("photo_id", "photo_url", "photo_image_url", "photo_submitted_at", "photo_featured", "photo_description",
                      "photographer_username", "photographer_first_name", "photographer_last_name", "stats_views")  # fmt: skip
LITE_KEYWORD_COLUMNS = ("photo_id", "keyword", "ai_service_1_confidence", "ai_service_2_confidence", "suggested_by_user")


def short(text: str) -> str:
    """11 characters, as Unsplash's ids have."""
    return base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest())[:11].decode()


def photo_id(query: str, place: int) -> str:
    """Of what a query finds at a place: each seventh is found by every query."""
    return short(f"shared/{place}" if place % 7 == 3 else f"{query}/{place}")


def premium(place: int) -> bool:
    """Each eleventh is of Unsplash+, under another licence."""
    return place % 11 == 5


class UnsplashServer(FixtureServer):
    """Every query finds `per_query` photographs. `way` is how hours are counted: `rolling`, from the `first` request, `clock`."""

    def __init__(self, key: str = "canary-key", quota: int = 5000, per_query: int = 100, *, way: str = "rolling",
                 now: Callable[[], float] = time.time, host: str = "127.0.0.1", port: int = 0,
                 reached_as: str = "") -> None:  # fmt: skip
        super().__init__(host, port, reached_as)
        self.key, self.quota, self.per_query, self.way, self._now = key, quota, per_query, way, now
        self.searches: list[dict[str, str]] = []
        """The parameters of each, in order."""
        self.downloads: Counter[str] = Counter()
        """Id -> calls of its download_location."""
        self.images: list[dict[str, str]] = []
        """The parameters that each image was asked for with, and its `id`."""
        self.moody = False
        """Whether every search finds something else than the one before."""
        self.elsewhere: str | None = None
        """Origin that download_location names instead of this server's."""
        self.refused = self.unauthorised = 0
        self.withdrawn: set[str] = set()
        self._used: deque[float] = deque()
        self._quota_lock = threading.Lock()
        self._draw = functools.lru_cache(maxsize=1000)(draw)

    def answer(self, path: str, query: str, headers: dict[str, str]) -> Answer:
        parameters = {name: values[0] for name, values in parse_qs(query).items()}
        if path.startswith("/photo-"):
            return self._image(path.removeprefix("/photo-"), parameters)
        if headers.get("authorization") != f"Client-ID {self.key}":
            self.unauthorised += 1
            return Answer.of_json({"errors": ["OAuth error: The access token is invalid"]}, 401)
        with self._quota_lock:
            left = self._left()
            if left > 0:
                self._used.append(self._now())
            else:
                self.refused += 1
        limits = {"X-Ratelimit-Limit": str(self.quota), "X-Ratelimit-Remaining": str(max(0, left - 1))}
        if left <= 0:
            return Answer(403, b"Rate Limit Exceeded", limits)
        if path == "/search/photos":
            self.searches.append(parameters)
            return Answer.of_json(self._search(parameters, headers["host"]), headers=limits)
        id, _, call = path.removeprefix("/photos/").partition("/")
        if call != "download" or id in self.withdrawn:
            return Answer.of_json({"errors": ["Couldn't find Photo"]}, 404, limits)
        self.downloads[id] += 1
        return Answer.of_json({"url": f"http://{headers['host']}/photo-{id}"}, headers=limits)

    def settings(self) -> dict[str, Any]:
        """What a run file's `source` needs to ask this server; beside the queries."""
        return {"kind": "unsplash", "api_url": self.url, "fetch": {"allow_http": True, "allow_private_hosts": True}}

    def _left(self) -> int:
        """Requests that are left of this hour."""
        now = self._now()
        if self.way == "rolling":
            while self._used and self._used[0] <= now - HOUR_S:
                self._used.popleft()
        elif self._used and (now >= self._used[0] + HOUR_S if self.way == "first" else now // HOUR_S > self._used[0] // HOUR_S):
            self._used.clear()
        return self.quota - len(self._used)

    def _search(self, parameters: dict[str, str], host: str) -> dict[str, Any]:
        query, page = parameters["query"], int(parameters.get("page", "1"))
        size = min(30, int(parameters.get("per_page", "10")))
        places = range((page - 1) * size, min(page * size, self.per_query))
        if self.moody:
            places = range(places.start + 1000 * len(self.searches), places.stop + 1000 * len(self.searches))
        return {"total": self.per_query, "total_pages": math.ceil(self.per_query / size),
                "results": [self._photo(query, place, host) for place in places]}  # fmt: skip

    def _photo(self, query: str, place: int, host: str) -> dict[str, Any]:
        id, user = photo_id(query, place), f"user{place % 5}"
        colour = PALETTE[hashlib.sha256(query.encode()).digest()[0] % len(PALETTE)]
        raw = f"http://{host}/photo-{id}?ixid=M3wx{place}&ixlib=rb-4.0.3&colour={colour}"
        return {
            "id": id, "width": 4000, "height": 3000, "color": "#404059", "alt_description": f"{query} number {place}",
            "premium": premium(place), "plus": premium(place),
            "urls": {"raw": raw, "full": f"{raw}&fm=jpg&q=85", "regular": f"{raw}&w=1080"},
            "links": {"self": f"http://{host}/photos/{id}", "html": f"https://unsplash.com/photos/{id}",
                      "download_location": f"{self.elsewhere or f'http://{host}'}/photos/{id}/download?ixid=M3wx{place}"},
            "user": {"id": user, "username": user, "name": f"Ansel {user.title()}", "portfolio_url": None,
                     "links": {"html": f"https://unsplash.com/@{user}"}},
        }  # fmt: skip

    def _image(self, id: str, parameters: dict[str, str]) -> Answer:
        self.images.append({"id": id, **parameters})
        width_px = min(int(parameters.get("w", "1000")), 1000)
        return Answer(200, self._draw(id, parameters.get("colour", "gray"), width_px=width_px, height_px=width_px * 3 // 4),
                      {"Content-Type": "image/jpeg"})  # fmt: skip


def write_lite(folder: Path, photos: Sequence[dict[str, str]], keywords: Sequence[Sequence[str]]) -> None:
    """The tables of a Lite dataset: photos by column, keywords as rows; in two files each, as the full dataset has them."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = [[photo.get(column, "") for column in LITE_PHOTO_COLUMNS] for photo in photos]
    for table, header, content in (("photos", LITE_PHOTO_COLUMNS, rows), ("keywords", LITE_KEYWORD_COLUMNS, keywords)):
        half = math.ceil(len(content) / 2)
        for number, part in enumerate((content[:half], content[half:])):
            lines = ["\t".join(row) for row in (header, *part)]
            (folder / f"{table}.tsv{number:03d}").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (folder / "colors.tsv000").write_bytes(b"\xff\xfe is never read")


def main() -> None:
    parser = arguments(__doc__ or "")
    parser.add_argument("--key", default="canary-key")
    parser.add_argument("--quota", type=int, default=5000, help="requests an hour")
    parser.add_argument("--per-query", type=int, default=100, help="photographs that a query finds")
    asked = parser.parse_args()
    with UnsplashServer(asked.key, asked.quota, asked.per_query, host=asked.host, port=asked.port,
                        reached_as=asked.reached_as) as server:  # fmt: skip
        plant(server, asked.fault)
        print(server.url, flush=True)
        print(json.dumps(server.settings()), flush=True)
        server.wait()


if __name__ == "__main__":
    main()
