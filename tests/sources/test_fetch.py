"""Downloads as they should go: what comes, in which order, how often a server is asked, and who is told when it is away."""

from __future__ import annotations

import hashlib
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

sys.path.insert(0, str(Path(__file__).parent))

from raw_server import Asked, RawServer, http

from pocketvlm.errors import DataError, RunFileError, SourceUnavailable, UserError
from pocketvlm.run_file.source import Fetch
from pocketvlm.sources.record import Problem
from pocketvlm.sources.web.download import download
from pocketvlm.sources.web.fetch import Fetcher, retry_after_s

BIG = bytes(range(256)) * 4000
BIG_SHA = hashlib.sha256(BIG).hexdigest()


@pytest.fixture
def server() -> Iterator[RawServer]:
    with RawServer({"/a": http(b"image a"), "/b": http(b"image b")}) as there:
        yield there


def fetcher(server: RawServer, *, resolve: Any = None, ca_certs: Path | None = None, name: str = "", **settings: Any) -> Fetcher:
    """One that may ask `server`, also as `name`."""
    values = {"allow_http": True, "allow_private_hosts": True, "timeout_s": 2, "deadline_s": 4, **settings}
    ports = {"resolve": resolve} if resolve else {}
    hosts = {server.place, f"{name or 'localhost'}:{server.port}"}
    return Fetcher(Fetch.model_validate(values), hosts, ca_certs=ca_certs, **ports)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def flaky(*answers: bytes) -> Any:
    """A route that gives one after the other; the last one stays. Empty: the connection is cut."""
    left = list(answers)

    def answer(client: socket.socket, asked: Asked) -> None:
        now = left.pop(0) if len(left) > 1 else left[0]
        if not now:
            client.shutdown(socket.SHUT_RDWR)
        client.sendall(now)

    return answer


def test_images_come_in_the_order_of_their_urls_whoever_is_first(server: RawServer) -> None:
    def slow(client: socket.socket, asked: Asked) -> None:
        time.sleep(0.2)
        client.sendall(http(b"slow"))

    server.routes["/slow"] = slow
    with fetcher(server) as there:
        got = list(there.get_all([f"{server.url}/{name}" for name in ("slow", "a", "none", "b")]))
    assert got[0] == b"slow" and got[1] == b"image a" and got[3] == b"image b"
    assert isinstance(got[2], Problem) and got[2].reason == "not_found"


def test_thousand_images_come_over_few_connections_in_seconds(server: RawServer) -> None:
    server.routes["*"] = http(b"x" * 20_000)
    began = time.monotonic()
    with fetcher(server, parallel=16) as there:
        sizes = [len(data) for data in there.get_all(f"{server.url}/{index}" for index in range(1000)) if isinstance(data, bytes)]
    assert sizes == [20_000] * 1000
    assert time.monotonic() - began < 15
    assert server.connections <= 16
    assert len(server.asked) == 1000


def test_no_more_than_parallel_are_asked_at_once_and_few_wait_unread(server: RawServer) -> None:
    at_once, most, lock = 0, 0, threading.Lock()

    def count(client: socket.socket, asked: Asked) -> None:
        nonlocal at_once, most
        with lock:
            at_once += 1
            most = max(most, at_once)
        time.sleep(0.02)
        with lock:
            at_once -= 1
        client.sendall(http(b"x"))

    server.routes["*"] = count
    with fetcher(server, parallel=3) as there:
        images = there.get_all(f"{server.url}/{index}" for index in range(60))
        assert next(images) == b"x"
        time.sleep(0.5)
        assert len(server.asked) <= 4 * 3 + 1
        assert len(list(images)) == 59
    assert 1 < most <= 3


@pytest.mark.parametrize("fault", [b"", http(b"", 500), http(b"", 503), http(b"", 429), http(b"", 408), http(b"", 425),
                                   b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf"])  # fmt: skip
def test_what_may_pass_is_tried_again(server: RawServer, fault: bytes) -> None:
    server.routes["/flaky"] = flaky(fault, fault, http(b"at last"))
    with fetcher(server, timeout_s=0.3) as there:
        assert there.get(f"{server.url}/flaky") == b"at last"
    assert server.paths() == ["/flaky"] * 3


@pytest.mark.parametrize(("status", "reason"), [
    (404, "not_found"), (410, "not_found"), (403, "refused_by_server"), (401, "refused_by_server"), (204, "bad_response"),
    (304, "bad_response"),
])  # fmt: skip
def test_what_stays_is_asked_once_and_is_a_problem(server: RawServer, status: int, reason: str) -> None:
    server.routes["/no"] = http(b"", status)
    with fetcher(server) as there:
        problem = there.get(f"{server.url}/no")
    assert isinstance(problem, Problem) and problem.reason == reason and str(status) in problem.detail
    assert server.paths() == ["/no"]


def test_retry_after_is_waited_for_and_one_beyond_the_deadline_ends_the_tries_at_once(server: RawServer) -> None:
    server.routes["/later"] = flaky(http(b"", 429, Retry_After=1), http(b"now"))
    server.routes["/much_later"] = http(b"", 503, Retry_After=3600)
    with fetcher(server, deadline_s=60) as there:
        began = time.monotonic()
        assert there.get(f"{server.url}/later") == b"now"
        assert time.monotonic() - began >= 1
        began = time.monotonic()
        problem = there.get(f"{server.url}/much_later")
        assert isinstance(problem, Problem) and problem.reason == "unavailable" and "answers 503" in problem.detail
        assert time.monotonic() - began < 30


@pytest.mark.parametrize(("text", "seconds"), [
    ("", 0), ("7", 7), ("soon", 0), ("-5", 0), ("1e9", 0), ("9" * 400, 999_999_999), ("٣", 0), ("Wed, 99 Foo 2020", 0),
    ("Wed, 21 Oct 2015 07:28:00 GMT", 0), ("Wed, 21 Oct 2015 07:28:00", 0),
])  # fmt: skip
def test_retry_after_is_read_as_seconds_or_as_a_date_and_nonsense_as_nothing(text: str, seconds: float) -> None:
    assert retry_after_s({"retry-after": text}) == seconds
    soon = format_datetime(datetime.now(UTC) + timedelta(seconds=1000))
    assert retry_after_s({"retry-after": soon}) == pytest.approx(1000, abs=5)


def test_single_dead_url_is_a_problem_when_others_come_and_also_when_it_is_the_last(server: RawServer) -> None:
    server.routes["/dead"] = http(b"", 500)
    with fetcher(server, deadline_s=0.5) as there:
        got = list(there.get_all([f"{server.url}/a", f"{server.url}/dead"]))
        assert got[0] == b"image a"
        last = there.get(f"{server.url}/dead")
    for problem in (got[1], last):
        assert isinstance(problem, Problem) and problem.reason == "unavailable"


def test_server_that_is_away_ends_the_run_and_quarantines_nothing(server: RawServer, unused_port: int) -> None:
    with fetcher(server, deadline_s=0.5, allow_hosts=[f"127.0.0.1:{unused_port}"]) as there:
        began = time.monotonic()
        with pytest.raises(SourceUnavailable, match="check the network and the server, then run again"):
            list(there.get_all(f"http://127.0.0.1:{unused_port}/{index}" for index in range(1000)))
        assert time.monotonic() - began < 20  # the deadline of each in turn would be 31 s


def test_server_that_goes_away_in_the_middle_ends_the_run(server: RawServer) -> None:
    server.routes["*"] = http(b"x")
    with fetcher(server, deadline_s=0.6, parallel=4) as there:
        images = there.get_all(f"{server.url}/{index}" for index in range(1000))
        assert [next(images) for _ in range(10)] == [b"x"] * 10
        server.routes["*"] = http(b"", 503)
        with pytest.raises(SourceUnavailable):
            assert all(image == b"x" for image in images)


def test_twenty_dead_urls_in_a_row_end_the_run_though_others_come_at_times(server: RawServer) -> None:
    server.routes["*"] = http(b"", 500)
    with fetcher(server, deadline_s=0.05) as there:
        dead = iter(range(1000))

        def lose(count: int) -> list[bytes | Problem]:
            return [there.get(f"{server.url}/{next(dead)}") for _ in range(count)]

        assert there.get(f"{server.url}/a") == b"image a"
        assert {problem.reason for problem in lose(19) if isinstance(problem, Problem)} == {"unavailable"}
        assert there.get(f"{server.url}/a") == b"image a"
        assert len(lose(19)) == 19
        with pytest.raises(SourceUnavailable, match="20 images in a row"):
            lose(1)


def test_kept_connection_that_the_server_closed_costs_no_try(server: RawServer) -> None:
    with fetcher(server) as there:
        assert there.get(f"{server.url}/a") == b"image a"
        server.hang_up()
        began = time.monotonic()
        assert there.get(f"{server.url}/b") == b"image b"
        assert time.monotonic() - began < 0.3


def test_leaving_the_fetcher_ends_what_others_still_wait_for(server: RawServer) -> None:
    begun = threading.Event()

    def silent(client: socket.socket, asked: Asked) -> None:
        begun.set()
        client.recv(1)

    server.routes["/silent"] = silent
    ended: list[BaseException] = []

    def wait(there: Fetcher) -> None:
        try:
            there.get(f"{server.url}/silent")
        except SourceUnavailable as error:
            ended.append(error)

    with fetcher(server, timeout_s=60, deadline_s=60) as there:
        thread = threading.Thread(target=wait, args=(there,))
        thread.start()
        assert begun.wait(5)
    thread.join(5)
    assert len(ended) == 1


def test_redirects_are_followed_and_counted(server: RawServer) -> None:
    for path, to in (("/0", "/1"), ("/1", "/2"), ("/2", "a")):
        server.routes[path] = http(b"", 302, Location=to)
    with fetcher(server, max_redirects=2) as there:
        assert there.get(f"{server.url}/1") == b"image a"
        problem = there.get(f"{server.url}/0")
    assert isinstance(problem, Problem) and problem.reason == "too_many_redirects"


def test_wrong_entry_of_allow_hosts_is_the_run_files_fault(server: RawServer) -> None:
    for entry in ("https://host.example/", "a b", "host:port", "u@host.example", "", "*", "2130706433"):
        with pytest.raises(RunFileError, match=r"run.labeller.source.fetch.allow_hosts: .* is no host"):
            fetcher(server, allow_hosts=[entry])


def test_request_gives_every_status_with_its_headers(server: RawServer) -> None:
    server.routes |= {"/ok": http(b"{}", X_Ratelimit_Remaining=49), "/quota": http(b"slow down", 429, Retry_After=5)}
    with fetcher(server) as there:
        answer = there.request(f"{server.url}/ok", {"Authorization": "Client-ID k"})
        assert (answer.status, answer.body, answer.headers["x-RATELIMIT-remaining"]) == (200, b"{}", "49")
        assert server.asked[-1].headers["authorization"] == "Client-ID k"
        answer = there.request(f"{server.url}/quota")
        assert (answer.status, answer.body, answer.headers["retry-after"]) == (429, b"slow down", "5")
        with pytest.raises(UserError, match="at most 1 are read"):
            there.request(f"{server.url}/ok", max_bytes=1)


def test_key_of_an_api_is_not_sent_on_to_another_host(server: RawServer) -> None:
    with RawServer({"/there": http(b"other")}) as other:
        server.routes |= {"/away": http(b"", 302, Location=f"{other.url}/there"), "/here": http(b"", 302, Location="/a")}
        with fetcher(server, allow_hosts=[other.place]) as there:
            assert there.request(f"{server.url}/away", {"Authorization": "secret"}).body == b"other"
            assert there.request(f"{server.url}/here", {"Authorization": "secret"}).body == b"image a"
        assert "authorization" not in other.asked[0].headers
        assert server.asked[-1].headers["authorization"] == "secret"


def test_api_that_does_not_answer_is_unavailable_and_its_key_is_in_no_message(server: RawServer, unused_port: int) -> None:
    with (
        fetcher(server, deadline_s=0.3, allow_hosts=[f"127.0.0.1:{unused_port}"]) as there,
        pytest.raises(SourceUnavailable, match=f"http://127.0.0.1:{unused_port}/search: no answer") as raised,
    ):
        there.request(f"http://127.0.0.1:{unused_port}/search?client_id=canary")
    assert "canary" not in str(raised.value)


# Certificates


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ssl.SSLContext]:
    """A CA's certificate, and a server's context with one of `images.example` by it."""
    folder = tmp_path_factory.mktemp("tls")
    now = datetime.now(UTC)

    def signed(name: str, key: ec.EllipticCurvePrivateKey, by: ec.EllipticCurvePrivateKey, *, ca: bool) -> bytes:
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        issuer = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test CA")])
        made = (x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(key.public_key())
                .serial_number(x509.random_serial_number()).not_valid_before(now - timedelta(days=1))
                .not_valid_after(now + timedelta(days=2))
                .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
                .add_extension(x509.SubjectAlternativeName([x509.DNSName(name.replace(" ", ""))]), critical=False)
                .sign(by, hashes.SHA256()))  # fmt: skip
        return made.public_bytes(serialization.Encoding.PEM)

    ca_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    ca = folder / "ca.pem"
    ca.write_bytes(signed("test CA", ca_key, ca_key, ca=True))
    pem = folder / "server.pem"
    private = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    pem.write_bytes(private + signed("images.example", key, ca_key, ca=False))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem)
    return ca, context


def test_https_dials_the_address_that_was_looked_up_under_the_name_of_the_url(authority: tuple[Path, ssl.SSLContext]) -> None:
    ca, tls = authority
    names: list[str | None] = []
    tls.sni_callback = lambda _socket, name, _context: names.append(name)
    looked_up: list[str] = []

    def resolve(host: str, port: int) -> list[str]:
        looked_up.append(host)
        return ["127.0.0.1"]

    with RawServer({"/a": http(b"image")}, tls) as server:
        with fetcher(server, name="images.example", resolve=resolve, ca_certs=ca, allow_http=False) as there:
            for spelling in ("images.example", "IMAGES.Example.", "images.example"):
                assert there.get(f"https://{spelling}:{server.port}/a") == b"image"
        assert server.connections == 1
        assert server.asked[0].headers["host"] == f"images.example:{server.port}"
    assert names == looked_up == ["images.example"]


def test_certificate_of_another_name_or_of_nobody_is_no_server_of_ours(authority: tuple[Path, ssl.SSLContext]) -> None:
    ca, tls = authority
    with RawServer({"/a": http(b"image")}, tls) as server:
        for name, trusted in (("other.example", ca), ("images.example", None)):
            with (
                fetcher(server, name=name, resolve=lambda host, port: ["127.0.0.1"], ca_certs=trusted, deadline_s=60) as there,
                pytest.raises(SourceUnavailable, match="CERTIFICATE_VERIFY_FAILED"),
            ):
                there.get(f"https://{name}:{server.port}/a")
        assert server.asked == []


def test_redirect_from_https_to_plain_http_is_not_followed(server: RawServer, authority: tuple[Path, ssl.SSLContext]) -> None:
    ca, tls = authority
    with RawServer({"/a": http(b"", 302, Location=f"{server.url}/a")}, tls) as secure:
        settings = {"allow_http": False, "allow_hosts": [server.place]}
        with fetcher(secure, name="images.example", resolve=lambda host, port: ["127.0.0.1"], ca_certs=ca, **settings) as there:
            problem = there.get(f"https://images.example:{secure.port}/a")
    assert isinstance(problem, Problem) and problem.reason == "not_https" and f"is redirected to {server.url}/a" in problem.detail
    assert server.connections == 0


# Large files


def ranged(content: bytes, etag: str = '"1"', stop_at: int | None = None) -> Any:
    """Serves ranges, with If-Range; up to `stop_at` bytes, then the connection is cut."""

    def answer(client: socket.socket, asked: Asked) -> None:
        start, status, extra = 0, 200, {"ETag": etag}
        wanted = asked.headers.get("range", "")
        if wanted and asked.headers.get("if-range", etag) == etag:
            start = int(wanted.removeprefix("bytes=").removesuffix("-"))
            status, extra = 206, {**extra, "Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}"}
            if start >= len(content):
                client.sendall(http(b"", 416, Content_Range=f"bytes */{len(content)}"))
                return
        body = http(content[start:], status, **extra)
        cut = len(body) if stop_at is None else len(body) - max(0, len(content) - stop_at)
        client.sendall(body[:cut])
        if stop_at is not None:
            client.shutdown(socket.SHUT_RDWR)

    return answer


def test_large_file_is_downloaded_once_and_leaves_nothing_beside_it(server: RawServer, tmp_path: Path) -> None:
    server.routes["/big"] = ranged(BIG)
    path = tmp_path / "deep" / "big.zip"
    with fetcher(server) as there:
        for _ in range(2):
            download(there, f"{server.url}/big", path, BIG_SHA, len(BIG))
    assert path.read_bytes() == BIG
    assert server.paths() == ["/big"]
    assert names(path.parent) == ["big.zip"]


def test_large_file_goes_on_where_a_lost_connection_left_it(server: RawServer, tmp_path: Path) -> None:
    server.routes["/big"] = ranged(BIG, stop_at=700_000)
    path = tmp_path / "big.zip"
    with fetcher(server, deadline_s=0.4) as there:
        with pytest.raises(SourceUnavailable, match="stopped at 700000 bytes"):
            download(there, f"{server.url}/big", path, BIG_SHA, len(BIG))
        assert not path.exists()
        server.routes["/big"] = ranged(BIG)
        download(there, f"{server.url}/big", path, BIG_SHA, len(BIG))
    assert path.read_bytes() == BIG
    assert (server.asked[-1].headers["range"], server.asked[-1].headers["if-range"]) == ("bytes=700000-", '"1"')


def test_large_file_that_changed_on_the_server_starts_over(server: RawServer, tmp_path: Path) -> None:
    path = tmp_path / "big.zip"
    server.routes["/big"] = ranged(b"old" * len(BIG), etag='"0"', stop_at=700_000)
    with fetcher(server, deadline_s=0.3) as there:
        with pytest.raises(SourceUnavailable):
            download(there, f"{server.url}/big", path, BIG_SHA, 2 * len(BIG) * 3)
        server.routes["/big"] = ranged(BIG, etag='"1"')
        download(there, f"{server.url}/big", path, BIG_SHA, len(BIG))
    assert path.read_bytes() == BIG


@pytest.mark.parametrize("left", [b"not its beginning" * 1000, BIG, BIG + b"more"])
def test_whatever_a_killed_process_left_the_file_is_right_in_the_end(server: RawServer, tmp_path: Path, left: bytes) -> None:
    server.routes["/big"] = ranged(BIG)
    path = tmp_path / "big.zip"
    (tmp_path / "big.zip.part").write_bytes(left)
    with fetcher(server) as there:
        download(there, f"{server.url}/big", path, BIG_SHA, len(BIG))
    assert path.read_bytes() == BIG
    assert names(tmp_path) == ["big.zip"]


def test_large_file_with_another_sha256_is_deleted_and_says_what_to_do(server: RawServer, tmp_path: Path) -> None:
    server.routes["/big"] = ranged(BIG)
    with (
        fetcher(server) as there,
        pytest.raises(DataError, match=f"{BIG_SHA}, not {'0' * 64}; if you trust what is served there now"),
    ):
        download(there, f"{server.url}/big", tmp_path / "big.zip", "0" * 64, len(BIG))
    assert names(tmp_path) == []


def test_large_file_that_is_too_large_or_not_there_is_the_datas_fault(server: RawServer, tmp_path: Path) -> None:
    server.routes["/big"] = ranged(BIG)
    with fetcher(server) as there:
        with pytest.raises(DataError, match="more than 1000 bytes"):
            download(there, f"{server.url}/big", tmp_path / "big.zip", BIG_SHA, 1000)
        with pytest.raises(DataError, match="answers 404; check the address"):
            download(there, f"{server.url}/none", tmp_path / "big.zip", BIG_SHA, 1000)
    assert not (tmp_path / "big.zip").exists()


DOWNLOADING = """
import sys
from pathlib import Path
from pocketvlm.run_file.source import Fetch
from pocketvlm.sources.web.download import download
from pocketvlm.sources.web.fetch import Fetcher
url, place, path, sha = sys.argv[1:]
with Fetcher(Fetch(allow_http=True, allow_private_hosts=True), {place}) as there:
    download(there, url, Path(path), sha, 10_000_000)
"""


def test_two_processes_at_once_and_one_that_is_killed_leave_one_right_file(server: RawServer, tmp_path: Path) -> None:
    def slow(client: socket.socket, asked: Asked) -> None:
        start = int(asked.headers.get("range", "bytes=0-").removeprefix("bytes=").removesuffix("-"))
        ends = {"Content_Range": f"bytes {start}-{len(BIG) - 1}/{len(BIG)}"} if start else {}
        whole = http(BIG[start:], 206 if start else 200, ETag='"1"', **ends)
        for at in range(0, len(whole), 50_000):
            client.sendall(whole[at : at + 50_000])
            time.sleep(0.03)

    server.routes["/big"] = slow
    path = tmp_path / "big.zip"
    command = [sys.executable, "-c", DOWNLOADING, f"{server.url}/big", server.place, str(path), BIG_SHA]
    killed = subprocess.Popen(command)
    part = tmp_path / "big.zip.part"
    while not part.exists() or part.stat().st_size < 100_000:
        time.sleep(0.01)
    killed.kill()
    killed.wait()
    assert 0 < part.stat().st_size < len(BIG)
    both = [subprocess.Popen(command) for _ in range(2)]
    assert [process.wait(30) for process in both] == [0, 0]
    assert path.read_bytes() == BIG
    assert names(tmp_path) == ["big.zip"]
    assert len(server.asked) == 2
    assert int(server.asked[1].headers["range"].removeprefix("bytes=").removesuffix("-")) >= 100_000
