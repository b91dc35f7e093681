from __future__ import annotations

import hashlib
import io
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

sys.path.insert(0, str(Path(__file__).parent))

from serve_unsplash import HOUR_S, UnsplashServer, photo_id, premium, write_lite

from pocketvlm.artifacts.folder import FolderStore
from pocketvlm.environment import Environment
from pocketvlm.errors import Corrupt, CredentialsError, DataError, RunFileError, SourceUnavailable
from pocketvlm.progress import Progress
from pocketvlm.run_file import UnsplashSource
from pocketvlm.sources.record import Context, Record
from pocketvlm.sources.unsplash import LICENCE, LITE_LICENCE, Unsplash
from pocketvlm.sources.unsplash_api import Clock

FAST = {"allow_http": True, "allow_private_hosts": True, "deadline_s": 2, "timeout_s": 1}


@dataclass
class FakeTime:
    """Ten minutes past a full hour; time passes only in sleep."""

    at: float = 500_000 * HOUR_S + 600
    slept: list[float] = field(default_factory=list)

    def now(self) -> float:
        return self.at

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.at += seconds


@pytest.fixture
def server() -> Iterator[UnsplashServer]:
    with UnsplashServer() as running:
        yield running


class Desk:
    """Opens readers that share a folder, a store, a log and a clock."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.store, self.log, self.time = folder, FolderStore(folder / "store"), io.StringIO(), FakeTime()

    def open(self, server: UnsplashServer | None = None, *, key: str | None = "canary-key", labelled: bool = False,
             **settings: Any) -> Unsplash:  # fmt: skip
        block = {"queries": ["river", "forest"], "width_px": 64, "fetch": FAST, **settings}
        source = UnsplashSource.model_validate({"kind": "unsplash", **(server.settings() if server else {}), **block})
        environment = Environment(unsplash_key=SecretStr(key) if key else None)
        context = Context(self.folder, ["water", "wood"], labelled=labelled, environment=environment, store=self.store,
                          progress=Progress("", self.log))  # fmt: skip
        return Unsplash(source, context, Clock(self.time.now, self.time.sleep))

    def ids(self, server: UnsplashServer | None = None, **settings: Any) -> list[str]:
        return ids(self.open(server, **settings))


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


def ids(records: Any) -> list[str]:
    return [record.source_id.removeprefix("unsplash/") for record in records]


def expected(per_query: int = 100) -> list[str]:
    """Two queries in turn, each photograph once, none of Unsplash+."""
    queues = [[photo_id(query, place) for place in range(per_query) if not premium(place)] for query in ("river", "forest")]
    found: list[str] = []
    while any(queues):
        for queue in queues:
            while queue and queue[0] in found:
                queue.pop(0)
            if queue:
                found.append(queue.pop(0))
    return found


def test_queries_are_taken_in_turn_and_no_photograph_twice(server: UnsplashServer, desk: Desk) -> None:
    assert desk.ids(server, limit=80) == expected()[:80]
    assert {(search["query"], search["page"]) for search in server.searches} == {
        ("river", "1"), ("forest", "1"), ("river", "2"), ("forest", "2")}  # fmt: skip
    assert all(search["per_page"] == "30" and search["order_by"] == "relevant" for search in server.searches)


def test_what_there_is_ends_the_search(server: UnsplashServer, desk: Desk) -> None:
    server.per_query = 33
    reader = desk.open(server, limit=1000)
    assert len(reader) == len(expected(33))
    assert len(server.searches) == 4


def test_search_settings_are_sent(server: UnsplashServer, desk: Desk) -> None:
    len(desk.open(server, limit=2, orientation="squarish", content_filter="high"))
    assert {(search["orientation"], search["content_filter"]) for search in server.searches} == {("squarish", "high")}
    server.searches.clear()
    len(desk.open(server, limit=2))
    assert [search.get("orientation", search["content_filter"]) for search in server.searches] == ["low", "low"]


def test_a_search_is_found_again_by_every_process_and_rerun(server: UnsplashServer, desk: Desk) -> None:
    first = desk.ids(server, limit=6)
    server.moody = True
    searches = len(server.searches)
    assert desk.ids(server, limit=6) == first
    assert desk.ids(server, limit=4) == first[:4]
    assert len(server.searches) == searches
    assert desk.ids(server, limit=6, snapshot="second") != first


def test_a_larger_limit_only_adds_to_the_end_and_searches_only_further_pages(server: UnsplashServer, desk: Desk) -> None:
    first = desk.ids(server, limit=6)
    server.searches.clear()
    longer = desk.open(server, limit=70)
    assert len(longer) == 70
    assert ids(longer.records(range(6))) == first
    assert {search["page"] for search in server.searches} == {"2"}


class Beaten(FolderStore):
    """A store in which somebody else is always a little faster: what the winner's store holds is there first."""

    def __init__(self, folder: Path, winner: FolderStore) -> None:
        super().__init__(folder)
        self._winner = winner

    def create(self, key: str, data: bytes) -> bool:
        super().create(key, self._winner.read(key))
        return super().create(key, data)


def test_processes_that_search_at_once_go_by_the_list_of_the_first(server: UnsplashServer, desk: Desk) -> None:
    server.moody = True
    first = desk.ids(server, limit=6)
    searches = len(server.searches)
    desk.store = Beaten(desk.folder / "beaten", desk.store)
    assert desk.ids(server, limit=6) == first
    assert len(server.searches) == 2 * searches
    assert desk.ids(server, limit=6) == first


def test_a_record_names_photographer_page_and_licence_as_the_guidelines_want_it(server: UnsplashServer, desk: Desk) -> None:
    record = next(iter(desk.open(server, limit=1, application="leafcounter")))
    referral = "utm_source=leafcounter&utm_medium=referral"
    id = photo_id("river", 0)
    assert record == Record(
        f"unsplash/{id}", record.data, url=f"https://unsplash.com/photos/{id}?{referral}",
        author=f"Ansel User0 (https://unsplash.com/@user0?{referral}) on Unsplash", licence=LICENCE,
    )  # fmt: skip
    assert record.data is not None
    assert record.data.startswith(b"\xff\xd8\xff")


def test_images_come_at_the_wanted_width_with_unsplashs_own_parameters_kept(server: UnsplashServer, desk: Desk) -> None:
    list(desk.open(server, limit=3, width_px=96))
    for image in server.images:
        assert (image["w"], image["fm"], image["q"], image["fit"]) == ("96", "jpg", "85", "max")
        assert image["ixid"].startswith("M3wx")
    assert len(server.images) == 3


def test_every_download_is_told_to_unsplash_once_and_nothing_else_is(server: UnsplashServer, desk: Desk) -> None:
    missing = expected()[1]
    server.fail(f"/photo-{missing}", "404*")
    records = list(desk.open(server, limit=6))
    assert [record.problem.reason if record.problem else None for record in records] == [None, "not_found", *[None] * 4]
    assert server.downloads == dict.fromkeys((id for id in ids(records) if id != missing), 1)


def test_a_photograph_that_was_withdrawn_is_not_used(server: UnsplashServer, desk: Desk) -> None:
    reader = desk.open(server, limit=4)
    server.withdrawn.add(ids(reader)[2])
    again = [record.problem.reason if record.problem else None for record in reader]
    assert again == [None, None, "withdrawn", None]


def test_records_of_a_range_ask_for_those_photographs_only(server: UnsplashServer, desk: Desk) -> None:
    whole = desk.ids(server, limit=20)
    server.downloads.clear()
    server.images.clear()
    searches = len(server.searches)
    again = desk.open(server, limit=20)  # as after a kill: the last pieces are missing
    assert ids(again.records(range(4, 20, 3))) == whole[4::3]
    assert Counter(image["id"] for image in server.images) == server.downloads == dict.fromkeys(whole[4::3], 1)
    assert len(server.searches) == searches


@pytest.mark.parametrize("way", ["rolling", "first", "clock"])
def test_the_quota_is_used_up_and_never_exceeded_however_hours_are_counted(desk: Desk, way: str) -> None:
    with UnsplashServer(quota=20, way=way, now=desk.time.now) as server:
        begun = desk.time.now()
        records = list(desk.open(server, limit=60))
        assert [record.problem for record in records] == [None] * 60
        assert server.refused == 0
        assert sum(server.downloads.values()) + len(server.searches) == 64
        assert desk.time.now() - begun <= 3 * HOUR_S + 60  # the fourth hour's first requests are the last
    assert desk.log.getvalue().count("Unsplash's quota of this hour is used up; waiting 1 h 00 min") == 3


def test_a_quota_that_others_use_too_is_asked_for_now_and_then(desk: Desk) -> None:
    with UnsplashServer(quota=20, way="rolling", now=desk.time.now) as server:
        list(desk.open(server, limit=18))
        desk.time.at += 1200
        fresh = desk.open(server, limit=18, snapshot="second")  # a process that knows nothing of those requests
        assert len(list(fresh)) == 18
        assert 1 <= server.refused <= 6
        assert min(desk.time.slept) >= 600


def test_a_quota_that_never_returns_ends_the_stage(desk: Desk) -> None:
    with UnsplashServer(quota=0, now=desk.time.now) as server, pytest.raises(SourceUnavailable, match="last two hours"):
        len(desk.open(server))
    assert server.refused <= 16


def test_a_wrong_or_missing_key_names_the_variable_and_never_the_key(server: UnsplashServer, desk: Desk) -> None:
    with pytest.raises(CredentialsError, match=r"UNSPLASH_ACCESS_KEY \(401: .*access token is invalid") as refused:
        len(desk.open(server, key="canary-wrong"))
    assert "canary" not in str(refused.value) + desk.log.getvalue()
    with pytest.raises(CredentialsError, match="UNSPLASH_ACCESS_KEY_FILE"):
        len(desk.open(server, key=None))
    assert server.unauthorised == 1


def test_the_key_goes_to_the_api_and_nowhere_else(server: UnsplashServer, desk: Desk) -> None:
    with UnsplashServer() as thief:
        server.elsewhere = thief.url
        place = thief.url.removeprefix("http://")
        with pytest.raises(SourceUnavailable, match="download_location of"):
            list(desk.open(server, limit=1, fetch={**FAST, "allow_hosts": [place]}))
        assert not thief.asked


def test_faults_of_the_api_pass_unnoticed_until_the_deadline(server: UnsplashServer, desk: Desk) -> None:
    server.fail("/search/photos", "500", "503", "cut")
    assert desk.ids(server, limit=4, fetch={**FAST, "deadline_s": 10}) == expected()[:4]
    server.fail("/search/photos", "502*")
    with pytest.raises(SourceUnavailable, match="for 10 s with 502"):
        len(desk.open(server, limit=4, snapshot="second", fetch={**FAST, "deadline_s": 10}))
    assert server.asked["/search/photos"] < 12


@pytest.mark.parametrize("body", [b"<html>", b"[]", b'{"results": [{"id": 1}], "total_pages": 1}'])
def test_an_answer_that_is_no_search_is_not_kept(desk: Desk, body: bytes) -> None:
    class Strange(UnsplashServer):
        def answer(self, path: str, query: str, headers: dict[str, str]) -> Any:
            answer = super().answer(path, query, headers)
            return type(answer)(200, body)

    with Strange() as server, pytest.raises(SourceUnavailable, match="Unsplash answered a search with"):
        len(desk.open(server, limit=4))
    assert list(desk.store.list("listings/")) == []


def test_a_list_that_was_spoilt_in_the_store_is_named(server: UnsplashServer, desk: Desk) -> None:
    len(desk.open(server, limit=4))
    key = next(desk.store.list("listings/")).key
    desk.store.write(key, b"{}")
    with pytest.raises(Corrupt, match=key):
        len(desk.open(server, limit=4))


def test_the_server_runs_alone_too(desk: Desk) -> None:
    script = Path(__file__).parent / "serve_unsplash.py"
    with subprocess.Popen([sys.executable, str(script), "--key", "another"], stdout=subprocess.PIPE, text=True) as alone:
        try:
            assert alone.stdout is not None
            url, settings = alone.stdout.readline().strip(), json.loads(alone.stdout.readline())
            assert settings["api_url"] == url
            assert desk.ids(key="another", limit=4, **settings) == expected()[:4]
        finally:
            alone.terminate()


def test_without_a_teacher_unsplash_is_refused(desk: Desk) -> None:
    with pytest.raises(RunFileError, match=r"no labels of your classes; add run.labeller.teacher"):
        desk.open(labelled=True)


def test_opening_and_fingerprint_ask_nobody_and_need_no_key(server: UnsplashServer, desk: Desk) -> None:
    same = desk.open(server, key=None).fingerprint()
    assert desk.open(server, fetch={**FAST, "parallel": 2}).fingerprint() == same
    changes: list[dict[str, Any]] = [
        {"queries": ["forest", "river"]}, {"limit": 7}, {"width_px": 65}, {"snapshot": "second"}, {"orientation": "portrait"},
        {"content_filter": "high"}, {"application": "leafcounter"}, {"api_url": "http://127.0.0.1:1"},
    ]  # fmt: skip
    others = {desk.open(server, **change).fingerprint() for change in changes}
    assert len(others - {same}) == len(changes)
    assert not server.asked


def test_plan_says_how_long_the_quota_makes_it_take_and_points_to_the_dataset(desk: Desk) -> None:
    lines = desk.open(limit=1000, width_px=1080, queries=["a", "b", "c", "d", "e"]).plan_lines()
    assert lines[0] == ("up to 1000 photographs by 5 queries in turn, 1080 px wide, from the search API; what it finds is kept "
                        "in the store as snapshot `first`")  # fmt: skip
    assert lines[2] == ("35 searches and 1000 calls for downloads are 1035 requests: 20 h of waiting with a demo key (50 an "
                        "hour), no waiting with a production key (5,000 an hour)")  # fmt: skip
    assert "they point to the dataset (unsplash.com/data)" in lines[3]
    assert len(lines) == 4
    assert desk.open(key=None).plan_lines()[-1] == "UNSPLASH_ACCESS_KEY is not set; the labeller needs it"


# The Lite dataset.


def lite_photo(id: str, server: UnsplashServer, **changes: str) -> dict[str, str]:
    return {
        "photo_id": id, "photo_url": f"https://unsplash.com/photos/{id}", "photo_image_url": f"{server.url}/photo-{id}",
        "photo_description": '"a ""quoted"" text\nof two lines"', "photographer_username": f"by-{id}",
        "photographer_first_name": "Ansel", "photographer_last_name": "Ödegård", **changes,
    }  # fmt: skip


RIVERS, FORESTS, BOTH = [f"r{n}" for n in range(9)], [f"f{n}" for n in range(4)], ["both"]


@pytest.fixture
def lite(server: UnsplashServer, desk: Desk) -> dict[str, Any]:
    """Settings for a Lite dataset whose images are at the server."""
    photos = [lite_photo(id, server) for id in (*RIVERS, *FORESTS, *BOTH, "other")]
    keywords = [(id, "River ", "88.2", "", "f") for id in (*RIVERS, *BOTH)]
    keywords += [(id, "forest", "", "60", "f") for id in (*BOTH, *FORESTS)]
    keywords += [("other", "desert", "99", "99", "t"), ("gone", "river", "99", "", "f")]
    write_lite(desk.folder / "lite", photos, keywords)
    return {"lite": "lite", "fetch": {**FAST, "allow_hosts": [server.url.removeprefix("http://")]}}


def hashed(ids: list[str]) -> list[str]:
    return sorted(ids, key=lambda id: hashlib.sha256(id.encode()).digest())


def test_photographs_of_lite_have_a_query_as_a_keyword_and_come_in_turn(server: UnsplashServer, desk: Desk, lite: Any) -> None:
    found = desk.ids(key=None, **lite)
    queues = [hashed([*RIVERS, *BOTH]), hashed([*FORESTS, *BOTH])]
    wanted: list[str] = []
    while any(queues):
        for queue in queues:
            while queue and queue[0] in wanted:
                queue.pop(0)
            if queue:
                wanted.append(queue.pop(0))
    assert found == wanted
    assert sorted(found) == sorted([*RIVERS, *FORESTS, *BOTH])
    assert desk.ids(limit=5, **lite) == found[:5]
    assert not server.searches
    assert not server.downloads


def test_a_record_of_lite_names_its_photographer_and_the_datasets_licence(server: UnsplashServer, desk: Desk, lite: Any) -> None:
    record = next(iter(desk.open(key=None, **lite)))
    id = record.source_id.removeprefix("unsplash/")
    referral = "utm_source=pocketvlm&utm_medium=referral"
    assert (record.url, record.licence) == (f"https://unsplash.com/photos/{id}?{referral}", LITE_LICENCE)
    assert record.author == f"Ansel Ödegård (https://unsplash.com/@by-{id}?{referral}) on Unsplash"
    assert server.images[0]["w"] == "64"


def test_keywords_of_models_need_confidence_and_those_of_people_none(server: UnsplashServer, desk: Desk) -> None:
    keywords = [("sure", "river", "10", "71.5", "f"), ("person", "river", "", "", "t"), ("unsure", "river", "69.9", "3", "f"),
                ("empty", "river", "", "", "f"), ("odd", "river", "high", "", "f")]  # fmt: skip
    write_lite(desk.folder / "lite", [lite_photo(row[0], server) for row in keywords], keywords)
    settings = {"lite": "lite", "queries": ["river"], "fetch": {**FAST, "allow_hosts": [server.url.removeprefix("http://")]}}
    assert set(desk.ids(min_keyword_confidence=70, **settings)) == {"sure", "person"}
    assert set(desk.ids(min_keyword_confidence=0, **settings)) == {"sure", "person", "unsure"}


def test_a_query_that_is_no_keyword_is_said_with_the_nearest_one(desk: Desk, lite: Any) -> None:
    assert len(desk.open(queries=["rivers", "forest"], **lite)) == 5
    assert "warning: no photograph of lite has the keyword 'rivers'; did you mean `river`?" in desk.log.getvalue()


def test_a_folder_that_is_no_lite_dataset_is_refused(desk: Desk, lite: Any) -> None:
    with pytest.raises(RunFileError, match=r"run.labeller.source.lite: elsewhere holds no photos.tsv000"):
        desk.open(lite="elsewhere")
    table = desk.folder / "lite" / "keywords.tsv001"
    table.write_text(table.read_text().replace("suggested_by_user", "suggested"))
    with pytest.raises(DataError, match=r"keywords.tsv001 has no column suggested_by_user"):
        len(desk.open(**lite))
    table.write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match=r"lite/keywords.tsv001: cannot be read as a table"):
        len(desk.open(**lite))


def test_fingerprint_of_lite_follows_its_tables(desk: Desk, lite: Any) -> None:
    before = desk.open(**lite).fingerprint()
    (desk.folder / "lite" / "colors.tsv000").write_text("is never read")
    assert desk.open(**lite).fingerprint() == before
    assert desk.open(min_keyword_confidence=51, **lite).fingerprint() != before
    table = desk.folder / "lite" / "photos.tsv000"
    table.write_text(table.read_text().replace("Ansel", "Adam"))
    assert desk.open(**lite).fingerprint() != before


def test_plan_of_lite_needs_no_key(desk: Desk, lite: Any) -> None:
    lines = desk.open(key=None, **lite).plan_lines()
    assert lines[0] == "up to 1000 photographs by 2 queries in turn, 64 px wide, from the Lite dataset in lite; no key, no quota"
    assert "passing the images on is not" in lines[-1]
