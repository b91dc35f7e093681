"""Hostile addresses and servers: no connection to a private address is made (a server on loopback watches), nothing hangs,
nothing grows, nothing crashes."""

from __future__ import annotations

import gzip
import socket
import sys
import time
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from raw_server import Asked, RawServer, http

from pocketvlm.errors import RunFileError, SourceUnavailable
from pocketvlm.run_file.source import Fetch
from pocketvlm.sources.record import Problem
from pocketvlm.sources.web.addresses import system_resolve
from pocketvlm.sources.web.fetch import Fetcher
from pocketvlm.sources.web.wire import system_dial

PUBLIC, OTHER_PUBLIC = "93.184.216.34", "2606:2800:21f:cb07:6820:80da:af6b:8b2c"
MAX_BYTES = 100_000


@pytest.fixture
def canary() -> Iterator[RawServer]:
    """What lies on a private address; whoever connects is seen."""
    with RawServer({"*": http(b"the canary's secret")}) as there:
        yield there
        assert there.connections == 0, "somebody reached a private address"


# URLs

PRIVATE = [
    "127.0.0.1", "127.0.0.2", "127.255.255.254", "0.0.0.0", "0.1.2.3", "10.0.0.1", "172.16.0.1", "172.31.255.255",
    "192.168.1.1", "169.254.169.254", "100.64.0.1", "100.127.255.255", "192.0.0.8", "192.0.2.1", "192.88.99.1", "198.18.0.1",
    "198.51.100.1", "203.0.113.1", "224.0.0.1", "239.255.255.250", "240.0.0.1", "255.255.255.255", "[::1]", "[::]",
    "[0:0:0:0:0:0:0:1]", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "[::ffff:10.0.0.1]", "[::ffff:169.254.169.254]",
    "[::127.0.0.1]", "[::ffff:0:127.0.0.1]", "[64:ff9b::127.0.0.1]", "[64:ff9b::a9fe:a9fe]", "[64:ff9b:1::127.0.0.1]",
    "[2002:7f00:1::]", "[2002:a00:1::1]", "[2002:a9fe:a9fe::]", "[2001:0:7f00:1::]", "[2001:0:5ef5:79fd:0:59d:80ff:fffe]",
    "[fe80::1]", "[fc00::1]", "[fd00:ec2::254]", "[fec0::1]", "[ff02::1]", "[2001:db8::1]", "[3fff::1]", "[100::1]",
    "[5f00::1]", "localhost", "LOCALHOST", "localhost.", "sub.localhost", "127.0.0.1.",
    "\uff11\uff12\uff17.\uff10.\uff10.\uff11", "\u2460\u2461\u2466.\u24ea.\u24ea.\u2460", "127\u30020\u30020\u30021",
    "\u24db\u24de\u24d2\u24d0\u24db\u24d7\u24de\u24e2\u24e3",
]  # fmt: skip
MISSPELT = [
    "2130706433", "0x7f000001", "0x7F.0.0.1", "0x7f.1", "0177.0.0.1", "017700000001", "127.1", "127.0.1", "127.0.0.01",
    "127.0.0.0x1", "00000177.0.0.1", "127.0.0.1.0", "256.0.0.1", "4294967297", "0", "0x", "[::1%25lo]", "[fe80::1%25eth0]",
    "[fe80::1%lo]", "[::1", "::1", "[127.0.0.1]", "[::ffff:0x7f.1]", "[v1.x]", "127.0.0.1%00.example", "127.0.0.1%2eexample",
    "me@127.0.0.1", "images.example@127.0.0.1", "images.example:443@127.0.0.1", "127.0.0.1\\@images.example",
    "127.0.0.1\t.example", "exa mple", "a..b", ".example", "-a.example", "a" * 64 + ".example", "", "*",
    "127.0.0.1,images.example", "xn--\ud800",
]  # fmt: skip


def ask(url: str, *hosts: str, **settings: Any) -> bytes | Problem:
    """With the machine's own resolver and dialler."""
    values = {"allow_http": True, "timeout_s": 1, "deadline_s": 1, **settings}
    with Fetcher(Fetch.model_validate(values), hosts) as fetcher:
        return fetcher.get(url)


@pytest.mark.parametrize("host", PRIVATE)
def test_private_address_is_not_asked_even_when_the_list_allows_its_host(canary: RawServer, host: str) -> None:
    place = f"{host}:{canary.port}"
    problem = ask(f"http://{place}/", place)
    assert isinstance(problem, Problem) and problem.reason == "private_address", problem
    problem = ask(f"http://{place}/", "images.example")
    assert isinstance(problem, Problem) and problem.reason == "host_not_allowed"


@pytest.mark.parametrize("host", MISSPELT)
def test_address_spelt_in_another_way_is_no_url_and_no_entry_of_the_list(canary: RawServer, host: str) -> None:
    problem = ask(f"http://{host}:{canary.port}/", canary.place, "images.example", allow_private_hosts=True)
    assert isinstance(problem, Problem) and problem.reason == "bad_url", problem
    with pytest.raises(RunFileError, match="is no host"):
        ask("http://images.example/", allow_hosts=[f"{host}:{canary.port}"])


@pytest.mark.parametrize(("url", "reason"), [
    ("http://CANARY/", "not_https"), ("HTTP://CANARY/", "not_https"), ("ftp://CANARY/", "not_https"),
    ("gopher://CANARY/", "not_https"), ("file:///etc/passwd", "bad_url"), ("data:image/png;base64,AAAA", "bad_url"),
    ("javascript:alert(1)", "bad_url"),
    ("//CANARY/", "not_https"), ("CANARY", "bad_url"), ("", "bad_url"), ("https:CANARY", "bad_url"),
    ("https:///CANARY", "bad_url"),
    ("https://CANARY:99999/", "bad_url"), ("https://127.0.0.1:x/", "bad_url"), ("https://127.0.0.1:-1/", "bad_url"),
    ("https://127.0.0.1:0/", "bad_url"), ("https://127.0.0.1:/", "bad_url"), ("https://127.0.0.1:22/", "host_not_allowed"),
    ("https://127.0.0.1/", "host_not_allowed"), ("https://CANARY/\r\nHost: x", "bad_url"), ("https://CANARY/\0", "bad_url"),
    ("https://CANARY/" + "a" * 10_000, "bad_url"), ("\thttps://CANARY/", "bad_url"), ("https://CANARY/\u202egnp.exe", "bad_url"),
    ("https://CANARY/\ud800", "bad_url"), ("https://[CANARY]/", "bad_url"), ("https://127.0.0.1:\uff18\uff10/", "bad_url"),
])  # fmt: skip
def test_url_of_another_kind_is_not_asked(canary: RawServer, url: str, reason: str) -> None:
    problem = ask(url.replace("CANARY", canary.place), canary.place, allow_http=False)
    assert isinstance(problem, Problem) and problem.reason == reason, problem


# Names, and where they lead


class World:
    """One name with a public address, which is really `server`; whatever else is dialled is dialled for real."""

    def __init__(self, server: RawServer, **answers: list[str] | Callable[[], list[str]]) -> None:
        self.server = server
        self.answers = {"images.example": [PUBLIC], **{name.replace("_", "."): answer for name, answer in answers.items()}}
        self.dialled: list[str] = []
        self.looked_up: list[str] = []

    def resolve(self, host: str, port: int) -> list[str]:
        self.looked_up.append(host)
        answer = self.answers.get(host) or system_resolve(host, port)
        return answer() if callable(answer) else answer

    def dial(self, address: str, port: int, seconds: float) -> socket.socket:
        self.dialled.append(address)
        if address in (PUBLIC, OTHER_PUBLIC):
            return system_dial("127.0.0.1", self.server.port, seconds)
        return system_dial(address, port, seconds)

    def fetcher(self, *hosts: str, **settings: Any) -> Fetcher:
        values = {"allow_http": True, "timeout_s": 0.5, "deadline_s": 0.5, "max_bytes": MAX_BYTES, **settings}
        return Fetcher(Fetch.model_validate(values), {"images.example", *hosts}, resolve=self.resolve, dial=self.dial)


@pytest.fixture
def server() -> Iterator[RawServer]:
    with RawServer({"/a": http(b"image a"), "/b": http(b"image b"), "/close": http(b"image", Connection="close")}) as there:
        yield there


@pytest.mark.parametrize("addresses", [
    ["127.0.0.1"], [PUBLIC, "127.0.0.1"], ["127.0.0.1", PUBLIC], [OTHER_PUBLIC, "::1"], ["::ffff:127.0.0.1"], ["fe80::1%1"],
    ["169.254.169.254"], [PUBLIC, "10.0.0.1", OTHER_PUBLIC], ["0.0.0.0"], ["64:ff9b::7f00:1"],
])  # fmt: skip
def test_name_with_one_private_address_among_others_is_not_dialled_at_all(
    server: RawServer, canary: RawServer, addresses: list[str]
) -> None:
    world = World(server, planted_example=addresses)
    with world.fetcher(f"planted.example:{canary.port}") as fetcher:
        problem = fetcher.get(f"http://planted.example:{canary.port}/")
    assert isinstance(problem, Problem) and problem.reason == "private_address"
    assert "planted.example leads to" in problem.detail and "fetch.allow_private_hosts" in problem.detail
    assert world.dialled == [] and server.connections == 0


def test_name_that_changes_its_answer_is_dialled_where_it_was_checked_and_never_looked_up_between(
    server: RawServer, canary: RawServer
) -> None:
    """The first look-up says a public address, every later one the canary's."""
    answers = iter([[PUBLIC]])
    world = World(server, rebinding_example=lambda: next(answers, ["127.0.0.1"]))
    with world.fetcher("rebinding.example", f"rebinding.example:{canary.port}") as fetcher:
        assert fetcher.get("http://rebinding.example/a") == b"image a"
        assert fetcher.get("http://rebinding.example/b") == b"image b"  # over the connection that was checked
        assert (world.looked_up, world.dialled) == (["rebinding.example"], [PUBLIC])
        assert fetcher.get("http://rebinding.example/close") == b"image"
        for url in ("http://rebinding.example/a", f"http://rebinding.example:{canary.port}/"):
            problem = fetcher.get(url)  # a new connection, looked up and checked anew
            assert isinstance(problem, Problem) and problem.reason == "private_address"
    assert world.dialled == [PUBLIC]


def test_name_that_changes_between_a_redirect_and_its_target_is_checked_again(server: RawServer, canary: RawServer) -> None:
    answers = iter([[PUBLIC]])
    world = World(server, rebinding_example=lambda: next(answers, ["127.0.0.1"]))
    server.routes["/away"] = http(b"", 302, Location=f"http://rebinding.example:{canary.port}/", Connection="close")
    with world.fetcher("rebinding.example", f"rebinding.example:{canary.port}") as fetcher:
        problem = fetcher.get("http://rebinding.example/away")
    assert isinstance(problem, Problem) and problem.reason == "private_address"
    assert world.dialled == [PUBLIC]


def test_proxy_of_the_environment_is_not_used(server: RawServer, canary: RawServer, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, canary.url)
    with World(server).fetcher() as fetcher:
        assert fetcher.get("http://images.example/a") == b"image a"


@pytest.mark.parametrize(("location", "reason"), [
    ("http://CANARY/", "private_address"), ("//CANARY/", "private_address"), ("http://localhost:PORT/", "private_address"),
    ("http://[::1]:PORT/", "private_address"), ("http://[::ffff:127.0.0.1]:PORT/", "private_address"),
    ("http://169.254.169.254/latest/meta-data/", "private_address"), ("http://inner.example:PORT/", "private_address"),
    ("http://2130706433:PORT/", "bad_url"), ("http://0x7f.1:PORT/", "bad_url"), ("http://me@CANARY/", "bad_url"),
    ("http://images.example@CANARY/", "bad_url"), ("http://CANARY\\@images.example/", "bad_url"),
    ("http://\xef\xbc\x91\xef\xbc\x92\xef\xbc\x97.0.0.1:PORT/", "bad_url"), ("file:///etc/passwd", "bad_url"),
    ("ftp://CANARY/", "not_https"), ("http://other.example/", "host_not_allowed"),
    ("http://images.example:22/", "host_not_allowed"), ("http://images.example.evil.example/", "host_not_allowed"),
    ("/loop", "too_many_redirects"), ("loop?again", "too_many_redirects"),
    ("", "too_many_redirects"), ("http://images.example:x/", "bad_url"), ("http://[/", "bad_url"), ("\t", "too_many_redirects"),
])  # fmt: skip
def test_redirect_is_checked_like_the_first_url(server: RawServer, canary: RawServer, location: str, reason: str) -> None:
    world = World(server, inner_example=["127.0.0.1"])
    to = location.replace("CANARY", canary.place).replace("PORT", str(canary.port))
    server.routes |= {path: http(b"", 302, Location=to) for path in ("/loop", "/loop?again")}
    allowed = [f"{host}:{canary.port}" for host in ("127.0.0.1", "localhost", "[::1]", "[::ffff:127.0.0.1]", "inner.example")]
    with world.fetcher(*allowed, "169.254.169.254") as fetcher:
        problem = fetcher.get("http://images.example/loop")
    assert isinstance(problem, Problem) and problem.reason == reason, problem
    assert set(world.dialled) == {PUBLIC}


# Servers


def drip(*parts: bytes, every_s: float = 0.05) -> Callable[[socket.socket, Asked], None]:
    """Sends the parts, then the last one again and again."""

    def answer(client: socket.socket, asked: Asked) -> None:
        for part in parts:
            client.sendall(part)
        while True:
            time.sleep(every_s)
            client.sendall(parts[-1])

    return answer


def flood(*parts: bytes) -> Callable[[socket.socket, Asked], None]:
    return drip(*parts, every_s=0)


def once(data: bytes) -> Callable[[socket.socket, Asked], None]:
    """Sends it, then closes."""

    def answer(client: socket.socket, asked: Asked) -> None:
        client.sendall(data)
        client.shutdown(socket.SHUT_WR)

    return answer


def silent(client: socket.socket, asked: Asked) -> None:
    client.recv(1)


def reset(client: socket.socket, asked: Asked) -> None:
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    client.close()
    raise OSError


OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"
AWAY = "away"
"""Stands for SourceUnavailable: it may pass, and there is nobody else."""
ANSWERS: dict[str, tuple[bytes | Callable[[socket.socket, Asked], None], set[str]]] = {
    "silence": (silent, {AWAY}),
    "reset": (reset, {AWAY}),
    "nothing": (once(b""), {AWAY}),
    "status line that drips": (drip(b"H"), {AWAY}),
    "headers that drip": (drip(OK + b"X-A: ", b"a"), {AWAY}),
    "header lines that drip": (drip(OK, b"X-A: a\r\n"), {AWAY}),
    "body that drips": (drip(OK + b"Content-Length: 1000\r\n\r\n", b"a"), {AWAY}),
    "body without length that drips": (drip(OK + b"\r\n", b"a"), {AWAY}),
    "chunks that drip": (drip(CHUNKED, b"1\r\na\r\n"), {AWAY}),
    "chunk size that drips": (drip(CHUNKED, b"0"), {AWAY}),
    "redirects that drip": (drip(b"HTTP/1.1 302 Found\r\nLocation: /x\r\nContent-Length: 10000\r\n\r\n", b"a"), {AWAY}),
    "errors that drip": (drip(b"HTTP/1.1 404 No\r\nContent-Length: 10000\r\n\r\n", b"a"), {AWAY}),
    "body without an end": (flood(OK + b"\r\n", b"a" * 10_000), {"too_many_bytes"}),
    "chunks without an end": (flood(CHUNKED, b"2710\r\n" + b"a" * 10_000 + b"\r\n"), {"too_many_bytes"}),
    "tiny chunks without an end": (flood(CHUNKED, b"1\r\na\r\n" * 1000), {"too_many_bytes", AWAY}),
    "chunk extensions without an end": (flood(CHUNKED + b"1;", b"a" * 10_000), {"bad_response", AWAY, "too_many_bytes"}),
    "trailers without an end": (flood(CHUNKED + b"1\r\na\r\n0\r\n", b"X: a\r\n" * 1000), {"too_many_bytes", AWAY}),
    "headers without an end": (flood(OK, b"X-A: a\r\n" * 1000), {"bad_response"}),
    "header line without an end": (flood(OK + b"X-A: ", b"a" * 10_000), {"bad_response"}),
    "status line without an end": (flood(b"HTTP/1.1 ", b"2" * 10_000), {"bad_response"}),
    "continues without an end": (flood(b"HTTP/1.1 100 Continue\r\n\r\n" * 1000), {"too_many_bytes", AWAY}),
    "error without an end": (flood(b"HTTP/1.1 404 No\r\n\r\n", b"a" * 10_000), {"not_found"}),
    "redirect without an end": (flood(b"HTTP/1.1 302 Found\r\nLocation: /a\r\n\r\n", b"a" * 10_000), {""}),
    "length that is too large": (once(OK + b"Content-Length: 999\r\n\r\nshort"), {AWAY}),
    "length beyond the cap": (once(OK + b"Content-Length: 999999999999\r\n\r\nshort"), {"too_many_bytes"}),
    "length of a thousand digits": (once(OK + b"Content-Length: " + b"9" * 1000 + b"\r\n\r\nshort"), {"too_many_bytes"}),
    "length that is too small": (once(OK + b"Content-Length: 2\r\n\r\nmore than two"), {""}),
    "negative length": (once(OK + b"Content-Length: -1\r\n\r\nbody"), {"", "bad_response"}),
    "length that is no number": (once(OK + b"Content-Length: many\r\n\r\nbody"), {"", "bad_response"}),
    "two lengths": (once(OK + b"Content-Length: 4\r\nContent-Length: 5\r\n\r\nbody!"), {"bad_response"}),
    "length and chunks": (http(b"1\r\na\r\n0\r\n\r\n", Transfer_Encoding="chunked"), {"", "bad_response"}),
    "negative chunk": (flood(CHUNKED + b"-1\r\n", b"a" * 10_000), {"bad_response", "too_many_bytes", AWAY}),
    "chunk of exabytes": (flood(CHUNKED + b"fffffffffffffff\r\n", b"a" * 10_000), {"too_many_bytes"}),
    "chunk that is no number": (once(CHUNKED + b"xyz\r\na\r\n0\r\n\r\n"), {"bad_response"}),
    "chunks without the last": (once(CHUNKED + b"1\r\na\r\n"), {AWAY}),
    "gzip that was not asked for": (http(gzip.compress(b"image"), Content_Encoding="gzip"), {"encoded_body"}),
    "gzip bomb": (http(gzip.compress(bytes(10_000_000)), Content_Encoding="gzip"), {"encoded_body"}),
    "deflate bomb": (http(zlib.compress(bytes(10_000_000)), Content_Encoding="deflate"), {"encoded_body"}),
    "gzip in gzip": (http(gzip.compress(gzip.compress(bytes(10_000_000))), Content_Encoding="gzip, gzip"), {"encoded_body"}),
    "encoding of nobody": (http(b"x", Content_Encoding="\xff"), {"encoded_body"}),
    "status of letters": (once(b"HTTP/1.1 abc OK\r\n\r\n"), {"bad_response"}),
    "status beyond all": (once(b"HTTP/1.1 99999 OK\r\n\r\n"), {"bad_response"}),
    "negative status": (once(b"HTTP/1.1 -200 OK\r\n\r\n"), {"bad_response"}),
    "http of version 9": (once(b"HTTP/9.9 200 OK\r\n\r\n"), {"bad_response"}),
    "another protocol": (once(b"SSH-2.0-OpenSSH_9.2\r\n"), {"bad_response"}),
    "zeros": (once(bytes(100)), {"bad_response"}),
    "switching protocols": (once(b"HTTP/1.1 101 Switching\r\nUpgrade: websocket\r\n\r\n"), {"bad_response"}),
    "part that was not asked for": (http(b"a", 206, Content_Range="bytes 0-0/9"), {"bad_response"}),
    "redirect to nowhere": (http(b"", 302), {"bad_response"}),
    "retry after a thousand years": (http(b"", 503, Retry_After="9" * 30), {AWAY}),
    "retry after nothing": (http(b"", 503, Retry_After="-1"), {AWAY}),
    "header of control characters": (once(OK + b"X: \x00\x01\x7f\r\nContent-Length: 1\r\n\r\na"), {""}),
    "header without a name": (once(OK + b": x\r\nContent-Length: 1\r\n\r\na"), {"", "bad_response"}),
    "cookie that wants to stay": (http(b"image", Set_Cookie="a=b; Domain=example"), {""}),
}  # fmt: skip


@pytest.mark.parametrize("name", ANSWERS)
def test_answer_of_a_hostile_server_ends_in_time_and_in_little_memory(server: RawServer, name: str) -> None:
    answer, right = ANSWERS[name]
    server.routes["/image"] = answer
    tracemalloc.start()
    began = time.monotonic()
    with World(server).fetcher() as fetcher:
        try:
            got = fetcher.get("http://images.example/image")
            found = got.reason if isinstance(got, Problem) else ""
        except SourceUnavailable:
            got, found = b"", AWAY
    took = time.monotonic() - began
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert found in right, got
    assert took < 3
    assert peak < 30_000_000
    assert len(got) <= MAX_BYTES if isinstance(got, bytes) else got.detail.isprintable() and len(got.detail) < 600


def test_connection_of_a_liar_is_not_used_for_the_next_image(server: RawServer) -> None:
    """What came beyond the length would be read as the answer to the next question."""

    def lie(client: socket.socket, asked: Asked) -> None:
        client.sendall(http(b"image")[:-5] + b"image" + http(b"planted"))

    server.routes["/lie"] = lie
    with World(server).fetcher() as fetcher:
        assert fetcher.get("http://images.example/lie") == b"image"
        time.sleep(0.05)
        assert fetcher.get("http://images.example/a") == b"image a"


@pytest.mark.parametrize("handshake", [b"", b"\x16", b"HTTP/1.1 400 Bad\r\n\r\n", bytes(100)])
def test_tls_that_is_none_ends_in_time(handshake: bytes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]

        def resolve(host: str, port: int) -> list[str]:
            return ["127.0.0.1"]

        settings = Fetch(allow_private_hosts=True, timeout_s=0.4, deadline_s=0.5)
        began = time.monotonic()
        with Fetcher(settings, {f"images.example:{port}"}, resolve=resolve) as fetcher:
            if handshake:
                from threading import Thread

                def greet() -> None:
                    client, _ = listening.accept()
                    with client:
                        client.sendall(handshake)
                        client.recv(1000)

                greeter = Thread(target=greet)
                greeter.start()
            with pytest.raises(SourceUnavailable):
                fetcher.get(f"https://images.example:{port}/")
            if handshake:
                greeter.join()
        assert time.monotonic() - began < 20  # by default a try alone may take 30
