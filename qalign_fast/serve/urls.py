"""A URL in, the bytes of its file out: from hosts that the operator allows, at public addresses, and from nowhere else.

A client who names a URL must not make this server reach what only the server can reach. So each URL, that of a redirect
too, passes three checks before anything is connected: its text, its host, and every address that the host has. The name
is resolved once, and the connection goes to an address that was checked: a second answer of DNS would not be.
"""

from __future__ import annotations

import http.client
import io
import re
import socket
import ssl
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address, ip_network
from threading import Thread
from time import monotonic
from typing import TypeAlias, cast
from urllib.parse import quote, urljoin, urlsplit

from qalign_fast.errors import ImageError, OptionError
from qalign_fast.pixels.limits import MAX_BYTES
from qalign_fast.version import __version__

_LONGEST = 2048  # characters of a URL
_SHOWN = 200  # characters of a URL, or of another library's error, in an error of ours
_PART = 1 << 18  # bytes asked of an answer at a time
_TRIED = 4  # addresses of one name, at most: a name may have hundreds
_PORTS = {"http": 80, "https": 443}
_REDIRECTS = (301, 302, 303, 307, 308)
_PLACE = re.compile(r"(?P<host>\[[0-9A-Fa-f:.]+\]|[^\[\]:@%*/?#]+)(?::(?P<port>[0-9]{1,5}))?")
_LABEL = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?")
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")  # as the last label it makes a host an address (WHATWG, URL, 3.5)
_USER = re.compile(r"^([a-z]*+:?+[/\\]*+)[^/\\]*@", re.IGNORECASE)

# IANA's special-purpose registries. `ipaddress` lacks some of them, and which ones differs from one Python to the next.
_NOT_PUBLIC = tuple(
    ip_network(text)
    for text in """
        0.0.0.0/8 10.0.0.0/8 100.64.0.0/10 127.0.0.0/8 169.254.0.0/16 172.16.0.0/12 192.0.0.0/24 192.0.2.0/24
        192.88.99.0/24 192.168.0.0/16 198.18.0.0/15 198.51.100.0/24 203.0.113.0/24 224.0.0.0/4 240.0.0.0/4
        2001::/23 2001:db8::/32 2002::/16 3fff::/20
        168.63.129.16/32
    """.split()  # the last one is Azure's service for its own machines
)
# Every public IPv6 address lies in the first or second. This leaves out what is local, multicast, mapped or compatible.
_IPV6, _NAT64 = IPv6Network("2000::/3"), IPv6Network("64:ff9b::/96")

Resolve: TypeAlias = Callable[[str, int], Sequence[str]]  # host, port -> addresses
Connect: TypeAlias = Callable[[str, int, float], socket.socket]  # address, port, seconds -> a connected socket


def find_addresses(host: str, port: int) -> list[str]:
    """The addresses of a host, as the system resolves it. Raises OSError, or UnicodeError."""
    return [str(entry[4][0]) for entry in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]


def open_socket(address: str, port: int, seconds: float) -> socket.socket:
    """A socket that is connected to this address; nothing is resolved. Raises OSError."""
    opened = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_STREAM)
    try:
        opened.settimeout(seconds)
        opened.connect((address, port))
    except BaseException:
        opened.close()
        raise
    return opened


@dataclass(frozen=True)
class UrlGuard:
    """Fetches files by URL, from allowed hosts only. With no hosts, it resolves no name and opens no socket.

    hosts: `example.org` is that host alone, `*.example.org` are the names below it, at the port 80 of http and the port
        443 of https; `example.org:8080` is that port alone. An address is allowed by exactly the text that URLs have.
    max_bytes: of a file.
    seconds: for everything together: names, connections, redirects, the file.
    redirects: how many are followed.
    resolve, connect: the way to the network; tests put others in their place.
    tls: how certificates are checked. None: as the system trusts them.

    Raises OptionError for an entry of `hosts` that names no host.
    """

    hosts: tuple[str, ...] = ()
    max_bytes: int = MAX_BYTES
    seconds: float = 10.0
    redirects: int = 3
    resolve: Resolve = find_addresses
    connect: Connect = open_socket
    tls: ssl.SSLContext | None = None
    _allowed: tuple[_Allowed, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_allowed", tuple(map(_read_entry, self.hosts)))

    def fetch(self, url: str) -> bytes:
        """The content of the URL's file. Blocks for at most `seconds`.

        Raises ImageError for a URL that is refused and for a file that cannot be fetched. Its text has no query.
        """
        try:
            return self._follow(url)
        except _UrlError as refused:
            text, cause = str(refused), refused.__cause__
        except TimeoutError as error:
            text, cause = f"not fetched in time, {self.seconds:g} seconds", error
        except http.client.IncompleteRead as error:
            text, cause = "cut off: the connection ended before the file did", error
        except ssl.SSLCertVerificationError as error:
            text, cause = f"the host's certificate is not valid ({error.verify_message})", error
        except (OSError, ValueError, http.client.HTTPException) as error:
            # ValueError: http.client's own, for what is no number
            reason = getattr(error, "strerror", None) or type(error).__name__  # other texts repeat what the host sent
            text, cause = f"cannot be fetched ({reason[:_SHOWN]})", error
        raise ImageError(f"{url_name(url)}: {text}") from cause

    def _follow(self, url: str) -> bytes:
        """From redirect to redirect to the file."""
        clock = _Clock(monotonic() + self.seconds)
        target = self._check(url)
        for _ in range(self.redirects + 1):
            with self._open(target, clock) as opened, _ask(opened, target, clock, self.max_bytes) as answer:
                if answer.status not in _REDIRECTS:
                    return _body(answer, self.max_bytes)
                onward = _onward(answer, target.url)
            target = self._redirect(target, onward)
        raise _UrlError(f"more than {self.redirects} redirects")

    def _redirect(self, target: _Target, url: str) -> _Target:
        """The next one. It is checked as the first one was, and https stays https."""
        try:
            onward = self._check(url)
            if target.scheme == "https" != onward.scheme:
                raise _UrlError("that leaves https")
        except _UrlError as refused:
            raise _UrlError(f"redirects to {url_name(url)}: {refused}") from refused
        return onward

    def _check(self, url: str) -> _Target:
        """What the URL names, if the operator allows it."""
        if not self._allowed:
            raise _UrlError("this server fetches no URLs; start it with --allow-url-host")
        target = _read_url(url)
        if not any(allowed.takes(target) for allowed in self._allowed):
            more = ", ..." if len(self.hosts) > 10 else ""
            allows = ", ".join(self.hosts[:10]) + more
            raise _UrlError(f"host '{target.place}' is not allowed; the server allows: {allows}")
        return target

    def _open(self, target: _Target, clock: _Clock) -> socket.socket:
        """A connection to one of the host's addresses, all of them public. For https, the certificate is the host's."""
        opened = self._reach(target, self._addresses(target, clock), clock)
        if target.scheme == "http":
            return opened
        with opened:  # closes what TLS has not taken over
            opened.settimeout(clock.left())
            return (self.tls or _system_tls()).wrap_socket(opened, server_hostname=target.host)

    def _addresses(self, target: _Target, clock: _Clock) -> list[str]:
        try:
            found = _in_time(lambda: self.resolve(target.host, target.port), clock.left())
        except (socket.gaierror, UnicodeError) as error:
            raise _UrlError(f"host '{target.host}' has no address") from error
        if not found:
            raise _UrlError(f"host '{target.host}' has no address")
        if not all(map(is_public, found)):
            raise _UrlError(f"host '{target.host}' has an address that is not public")
        return [str(ip_address(address)) for address in found]

    def _reach(self, target: _Target, addresses: Sequence[str], clock: _Clock) -> socket.socket:
        """The first address that answers. Each has an equal share of the time that is left."""
        addresses = addresses[:_TRIED]
        for index, address in enumerate(addresses[:-1]):
            with suppress(OSError):
                return self.connect(address, target.port, clock.left() / (len(addresses) - index))
        return self.connect(addresses[-1], target.port, clock.left())


def is_public(address: str) -> bool:
    """Whether everybody on the internet reaches the same machine at this address.

    NAT64's well-known prefix carries an IPv4 address, which must be public too: networks without IPv4 reach every host
    by it. No public host has an address of the other forms that carry one (mapped, compatible, 6to4, Teredo, NAT64 of a
    local network). They are refused, whatever is inside.
    """
    if "%" in address:  # of one network interface
        return False
    try:
        ip = ip_address(address)
    except ValueError:
        return False
    if any(ip.version == network.version and ip in network for network in _NOT_PUBLIC):
        return False
    if isinstance(ip, IPv6Address) and ip in _NAT64:
        return is_public(str(IPv4Address(int(ip) & 0xFFFFFFFF)))
    if isinstance(ip, IPv6Address) and ip not in _IPV6:
        return False
    return ip.is_global and not (ip.is_multicast or ip.is_reserved or ip.is_link_local or ip.is_unspecified)


def url_name(url: str) -> str:
    """What errors call a URL: one line, at most 200 characters, without the query and without a password."""
    if len(url) > _LONGEST:
        return f"<a URL of {len(url)} characters>"
    bare = _USER.sub(r"\1", re.split(r"[?#]", url, maxsplit=1)[0])
    plain = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in bare[: _SHOWN + 1])
    return (plain if len(plain) <= _SHOWN else plain[: _SHOWN - 3] + "...") or "<an empty URL>"


class _UrlError(Exception):
    """Why a URL is not fetched."""


@dataclass(frozen=True)
class _Target:
    """A URL that can be read. `host` is in lower case and ASCII, `path` has the query and is quoted."""

    url: str
    scheme: str
    host: str
    port: int
    path: str

    @property
    def place(self) -> str:
        """Host and port, as a request says them."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _PORTS[self.scheme] else f"{host}:{self.port}"


@dataclass(frozen=True)
class _Allowed:
    """An entry of the operator's list. `below`: the names below this one, and not itself."""

    host: str
    below: bool
    port: int | None

    def takes(self, target: _Target) -> bool:
        named = target.host.endswith(f".{self.host}") if self.below else target.host == self.host
        return named and target.port == (self.port or _PORTS[target.scheme])


def _read_entry(text: str) -> _Allowed:
    """One allowed host. Raises OptionError."""
    below = text.startswith("*.")
    place = text[2:] if below else text
    if place.count(":") > 1 and "[" not in place:
        place = f"[{place}]"
    try:
        host, port = _read_place(place)
    except (_UrlError, ValueError):
        host, port = "", None
    if not host or (below and _is_address(host)):
        raise OptionError(f"{text!r} is no host; expected example.org, *.example.org or example.org:8080")
    return _Allowed(host, below, port)


def _read_url(url: str) -> _Target:
    """The parts of a URL. Raises _UrlError for what is not plainly a URL of http or https."""
    if len(url) > _LONGEST:
        raise _UrlError(f"expected at most {_LONGEST}")
    if not url.isprintable() or " " in url or "\\" in url:
        raise _UrlError("spaces, backslashes and control characters do not belong into a URL")
    try:
        parts = urlsplit(url)
        if parts.scheme not in _PORTS:
            raise _UrlError("not a URL of http or https")
        if "@" in parts.netloc:
            raise _UrlError("a user name and a password are not taken")
        host, port = _read_place(parts.netloc.removesuffix(":"))
    except ValueError as error:  # brackets without an address, a name that IDNA does not take
        raise _UrlError("its host cannot be read") from error
    path = quote(parts.path or "/", safe="/%:@!$&'()*+,;=~")
    query = "?" + quote(parts.query, safe="/?%:@!$&'()*+,;=~") if parts.query else ""
    return _Target(url, parts.scheme, host, port or _PORTS[parts.scheme], path + query)


def _read_place(text: str) -> tuple[str, int | None]:
    """Host and port, None where there is none. Raises ValueError or _UrlError."""
    found = _PLACE.fullmatch(text)
    if not found or not 0 < int(found["port"] or 1) < 65536:
        raise _UrlError("its host cannot be read")
    return _read_host(found["host"]), int(found["port"]) if found["port"] else None


def _read_host(text: str) -> str:
    """A host in the one form in which hosts are compared: lower case, IDNA, no dot at the end, no brackets.

    An address stays as it is written: 127.1 and 0x7f.0.0.1 are not 127.0.0.1, nor is it with a dot at the end.
    Raises ValueError or _UrlError.
    """
    if text.startswith("["):
        IPv6Address(text[1:-1])
        return text[1:-1].lower()
    host = text.encode("idna").decode("ascii").lower()
    name = host.removesuffix(".")
    if len(name) > 253 or not all(map(_LABEL.fullmatch, name.split("."))):
        raise _UrlError("its host cannot be read")
    if not _is_address(host):
        return name
    if not text.isascii():
        raise _UrlError("an address is written in plain digits")
    return host


def _is_address(host: str) -> bool:
    """Whether some resolver takes the host for an address: its last label is a number. All of IPv6 has colons."""
    return ":" in host or _NUMBER.fullmatch(host.removesuffix(".").rpartition(".")[2]) is not None


@dataclass(frozen=True)
class _Clock:
    """When the time for a fetch is over, by `time.monotonic`."""

    end: float

    def left(self) -> float:
        """Seconds, more than 0. Raises TimeoutError."""
        if (left := self.end - monotonic()) <= 0:
            raise TimeoutError
        return left


class _Wire(io.RawIOBase):
    """What a socket gives, until the time is over or too much has come.

    A socket's own timeout starts again with every byte. And http.client reads without a bound what calls itself a
    chunk of -1 bytes, or answer after answer with status 100.
    """

    def __init__(self, opened: socket.socket, clock: _Clock, most: int) -> None:
        self._opened, self._clock, self._left = opened, clock, most

    def makefile(self, _: str) -> io.BufferedReader:
        """All that HTTPResponse asks of a socket."""
        return io.BufferedReader(self)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]  # io.BufferedReader gives no other
        self._opened.settimeout(self._clock.left())
        count = self._opened.recv_into(buffer)
        self._left -= count
        if self._left < 0:
            raise _UrlError("the host sends more than was asked for")
        return count


@cache
def _system_tls() -> ssl.SSLContext:
    return ssl.create_default_context()


def _in_time(resolve: Callable[[], Sequence[str]], seconds: float) -> Sequence[str]:
    """What resolving gives. Raises TimeoutError; the thread then ends when the system's resolver gives up."""
    answer: Future[Sequence[str]] = Future()

    def run() -> None:
        try:
            answer.set_result(resolve())
        except Exception as error:  # raised again below
            answer.set_exception(error)

    Thread(target=run, name="resolve a URL's host", daemon=True).start()
    return answer.result(seconds)


def _ask(opened: socket.socket, target: _Target, clock: _Clock, most: int) -> http.client.HTTPResponse:
    """The answer, its head read. The request has no cookies, no credentials and nothing from the environment."""
    head = [
        f"GET {target.path} HTTP/1.1",
        f"Host: {target.place}",
        f"User-Agent: qalign-fast/{__version__}",
        "Accept: */*",
        "Accept-Encoding: identity",
        "Connection: close",
    ]
    opened.settimeout(clock.left())
    opened.sendall("\r\n".join([*head, "", ""]).encode("ascii"))
    # the head and what divides chunks come on top of the file
    wire = _Wire(opened, clock, most + most // 16 + (1 << 20))
    answer = http.client.HTTPResponse(cast("socket.socket", wire), method="GET")
    try:
        answer.begin()
    except BaseException:
        answer.close()
        raise
    return answer


def _values(answer: http.client.HTTPResponse, header: str) -> set[str]:
    return {str(value).strip().lower() for value in answer.headers.get_all(header, [])}


def _onward(answer: http.client.HTTPResponse, base: str) -> str:
    """Where a redirect leads. Its text is checked here too: urljoin drops line feeds without a word."""
    found = answer.headers.get_all("location", [])
    if len(found) != 1:
        raise _UrlError(f"redirects to {len(found)} addresses; expected one")
    location = str(found[0])
    with suppress(UnicodeError):  # http.client takes all for Latin-1
        location = location.encode("latin-1").decode("utf-8")
    try:
        if len(location) <= _LONGEST and location.isprintable():
            return urljoin(base, location)
    except ValueError:  # brackets without an address
        pass
    raise _UrlError("redirects to what cannot be read")


def _body(answer: http.client.HTTPResponse, most: int) -> bytes:
    """The file: with status 200, not compressed, whole, and not over the limit."""
    if answer.status != 200:
        raise _UrlError(f"the host answers with status {answer.status}; expected 200")
    if _values(answer, "content-encoding") - {"identity", ""}:
        raise _UrlError("the host sends it compressed; expected it as it is")
    if _values(answer, "transfer-encoding") - {"chunked"}:
        raise _UrlError("the host sends it in an encoding that was not asked for")
    lengths = _values(answer, "content-length")
    if len(lengths) > 1 or not all(re.fullmatch("[0-9]{1,18}", length) for length in lengths):
        raise _UrlError("the host tells no readable Content-Length")
    too_much = f"over the limit of {most} bytes"
    length = None if answer.chunked else next(map(int, lengths), None)
    if (length or 0) > most:
        raise _UrlError(too_much)
    parts: list[bytes] = []
    count = 0
    while part := answer.read(min(_PART, most - count + 1)):
        parts.append(part)
        count += len(part)
        if count > most:
            raise _UrlError(too_much)
    if length is not None and count < length:
        raise _UrlError(f"cut off after {count} of {length} bytes")
    return b"".join(parts)
