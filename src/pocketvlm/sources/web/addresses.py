"""Which servers may be asked: URLs taken apart, hosts against a list, addresses against the networks that are not public."""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Callable, Collection
from dataclasses import dataclass
from urllib.parse import quote, urlsplit

from pocketvlm.sources.record import Problem

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Resolve = Callable[[str, int], list[str]]
"""Host and port -> all its addresses. Raises OSError."""

DEFAULT_PORTS = {"https": 443, "http": 80}
MAX_URL_CHARACTERS = 8_000
NUMBER = re.compile(r"(0x[0-9a-f]*|[0-9]+)$")
NAME = re.compile(r"(?=.{1,253}$)[a-z0-9_]([-a-z0-9_]{0,61}[a-z0-9_])?(\.[a-z0-9_]([-a-z0-9_]{0,61}[a-z0-9_])?)*$")

GLOBAL_UNICAST = ipaddress.ip_network("2000::/3")
NAT64 = ipaddress.ip_network("64:ff9b::/96")
SPECIAL = tuple(map(ipaddress.ip_network, (
    "192.0.0.0/24", "192.88.99.0/24", "2001::/23", "2001:db8::/32", "3fff::/20",
)))  # fmt: skip
"""Not for the public by IANA's registers, or only as anycast; `is_global` of some Python versions lets them pass."""


class Refused(Exception):
    """Holds the problem of a URL that must not be, or cannot be, fetched; leaves the room only as one of our errors."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.problem = Problem(reason, detail)


@dataclass(frozen=True)
class Target:
    """A URL that passed: host in lower case and ASCII, without a dot at its end; IPv6 without brackets."""

    scheme: str
    host: str
    port: int
    path: str
    """With the query; printable ASCII."""

    @property
    def origin(self) -> tuple[str, str, int]:
        return self.scheme, self.host, self.port


class Hosts:
    """The allow-list. An entry `host` means its default ports, `host:port` this port."""

    def __init__(self, entries: Collection[str], *, allow_http: bool, allow_private: bool) -> None:
        """Raises ValueError with the text of an entry that is neither."""
        self._allow_http = allow_http
        self._allow_private = allow_private
        self._open: set[tuple[str, int | None]] = set()
        for entry in entries:
            try:
                host, port = _host_and_port(entry)
            except (Refused, ValueError) as error:
                raise ValueError(entry) from error
            self._open.add((host, port))

    def check(self, url: str) -> Target:
        """Takes the URL apart. Raises Refused: bad_url, not_https or host_not_allowed."""
        if not url.isprintable() or "\\" in url or len(url) > MAX_URL_CHARACTERS:
            raise Refused("bad_url", "holds control characters or a backslash, or is too long")
        try:
            parts = urlsplit(url)
            host, port = _host_and_port(parts.netloc)
        except ValueError as error:
            raise Refused("bad_url", f"cannot be read: {error}") from error
        if parts.scheme not in DEFAULT_PORTS:
            raise Refused("not_https", f"starts with {parts.scheme[:20] or 'nothing'}:; only https is fetched")
        if parts.scheme == "http" and not self._allow_http:
            raise Refused("not_https", "is plain http; fetch.allow_http allows it")
        default = DEFAULT_PORTS[parts.scheme]
        if (host, port) not in self._open and not (port in (None, default) and {(host, None), (host, default)} & self._open):
            place = host if port is None else f"{host}:{port}"
            raise Refused("host_not_allowed", f"{place} is not among the hosts of fetch.allow_hosts")
        if not self._allow_private and (host == "localhost" or host.endswith(".localhost")):
            raise Refused("private_address", f"{host} is this machine")
        path = quote(parts.path or "/", safe="/%:@!$&'()*+,;=~-._")
        query = f"?{quote(parts.query, safe='/%:@!$&()*+,;=~-._?')}" if parts.query else ""
        return Target(parts.scheme, host, port or default, path + query)

    def addresses(self, target: Target, resolve: Resolve) -> list[str]:
        """All addresses of the target's host, each of them checked.

        Raises Refused (private_address) when only one of them is not public, OSError when the name has none.
        """
        found = list(dict.fromkeys(resolve(target.host, target.port)))
        if not found:
            raise OSError(f"{target.host} has no address")
        for text in found:
            if not self._allow_private and not is_public(ipaddress.ip_address(text)):
                raise Refused("private_address", f"{target.host} leads to {text}, which is not a public address; "
                                                 "fetch.allow_private_hosts allows it")
        return found


def system_resolve(host: str, port: int) -> list[str]:
    """Asks the machine's resolver. Raises OSError."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [str(address[0]) for *_, address in found]


def is_public(address: Address) -> bool:
    """Whether everybody on the internet means the same machine by it; an IPv4 address inside an IPv6 one counts too."""
    if any(address in network for network in SPECIAL if network.version == address.version):
        return False
    if isinstance(address, ipaddress.IPv4Address):
        return address.is_global and not address.is_multicast
    if address.ipv4_mapped is not None:
        return is_public(address.ipv4_mapped)
    if address in NAT64:
        return is_public(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF))
    if address.sixtofour is not None:
        return is_public(address.sixtofour)
    return address in GLOBAL_UNICAST and address.is_global  # Teredo lies in 2001::/23


def _host_and_port(netloc: str) -> tuple[str, int | None]:
    """Raises Refused (bad_url), or ValueError for a wrong port."""
    if "@" in netloc or "\\" in netloc or not netloc.isprintable():
        raise Refused("bad_url", "holds a user name, a backslash or a control character")
    parts = urlsplit(f"//{netloc}")
    host, port = _plain_host(netloc, parts.hostname or ""), parts.port
    if port == 0 or netloc.endswith(":") or parts.path or parts.query or parts.fragment:
        raise Refused("bad_url", f"{netloc[:80]} is neither a host nor a host and a port")
    return host, port


def _plain_host(netloc: str, host: str) -> str:
    if netloc.startswith("["):
        try:
            return str(ipaddress.IPv6Address(host.partition("%")[0] if "%" not in host else ""))
        except ValueError as error:
            raise Refused("bad_url", f"[{host[:60]}] is no IPv6 address, or has a zone") from error
    try:
        plain = host.encode("idna").decode().lower() if not host.isascii() else host.lower()
    except UnicodeError as error:
        raise Refused("bad_url", f"{host[:60]} is no host name") from error
    plain = plain.removesuffix(".")
    if NUMBER.fullmatch(plain.rpartition(".")[2]):
        # 2130706433, 0x7f.1, 0177.0.0.1, 127.1: resolvers read them as addresses, each in its own way.
        try:
            return str(ipaddress.IPv4Address(plain))
        except ValueError as error:
            raise Refused("bad_url", f"{plain[:60]} is no IPv4 address of four decimal numbers") from error
    if not NAME.fullmatch(plain):
        raise Refused("bad_url", f"{host[:60]} is no host name")
    return plain
