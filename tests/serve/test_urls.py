"""Which URLs the server fetches, and from where. Names and connections are stubs: nothing but loopback is contacted."""
# ruff: noqa: RUF001 - letters and digits that look like others are what is tested

from __future__ import annotations

import shutil
import socket
import ssl
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from threading import Event, Thread

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qalign_fast.errors import ImageError, OptionError
from qalign_fast.serve.urls import UrlGuard, find_addresses, is_public, open_socket, url_name

CDN = "cdn.example.org"
PUBLIC, OTHER_PUBLIC, PUBLIC6 = "93.184.215.14", "93.184.216.34", "2606:2800:220:1:248:1893:25c8:1946"
DATA = bytes(range(256)) * 300

NOT_PUBLIC = """
    0.0.0.0 0.1.2.3 10.0.0.1 10.255.255.255 100.64.0.1 100.127.255.255 127.0.0.1 127.255.255.254 169.254.0.1
    169.254.169.254 169.254.170.2 172.16.0.1 172.31.255.255 192.0.0.1 192.0.0.9 192.0.0.170 192.0.0.192 192.0.2.1
    192.88.99.1 192.168.0.1 192.168.255.255 198.18.0.1 198.19.255.255 198.51.100.1 203.0.113.1 224.0.0.1 239.255.255.255
    240.0.0.1 255.255.255.255 100.100.100.200 168.63.129.16
    :: ::1 ::2 ::127.0.0.1 ::93.184.215.14 ::ffff:127.0.0.1 ::ffff:10.0.0.1 ::ffff:169.254.169.254 ::ffff:93.184.215.14
    64:ff9b::7f00:1 64:ff9b::a9fe:a9fe 64:ff9b::a00:1 64:ff9b:1::1 64:ff9b:1::5db8:d70e 100::1 2001::1
    2001:0:7f00:1:0:0:80ff:fffe 2001:0:5db8:d70e:0:0:a247:28f1 2001:2::1 2001:10::1 2001:20::1 2001:db8::1
    2002:7f00:1::1 2002:a00:1::1 2002:a9fe:a9fe::1 2002:e000:1::1
    2002:5db8:d70e::1 3fff::1 4000::1 5f00::1 fc00::1 fd00:ec2::254
    fd20:ce::254 fe80::1 fe80::1%eth0 fec0::1 ff02::1 ff0e::1 2606:2800::1%eth0
""".split()
IS_PUBLIC = ["1.1.1.1", "8.8.8.8", PUBLIC, "100.63.255.255", "100.128.0.1", "172.32.0.1", "223.255.255.255", PUBLIC6]
IS_PUBLIC += ["2a00:1450:4001::1", "64:ff9b::5db8:d70e"]  # the last one carries PUBLIC

HOSTS_THAT_ARE_PRIVATE = """
    127.0.0.1 127.0.0.1. 127.1 127.0.1 2130706433 017700000001 0177.0.0.1 0177.0.0.01 0x7f.1 0x7f.0.0.1 0x7f000001
    0X7F000001 0x7f.0.0.0x1 0 0.0.0.0 10.1 0xa000001 127%2e0%2e0%2e1 %31%32%37.0.0.1 １２７.0.0.1 ①②⑦.0.0.1
    127。0。0。1 127．0．0．1 169.254.169.254 2852039166 0xa9fea9fe 0251.0376.0251.0376 169.254.43518
    localhost localhost. LOCALHOST [::1] [::] [0:0:0:0:0:0:0:1] [::ffff:127.0.0.1] [::ffff:7f00:1] [::FFFF:7F00:1]
    [::127.0.0.1] [::7f00:1] [64:ff9b::127.0.0.1] [2002:7f00:1::] [fd00:ec2::254] [fe80::1] [fe80::1%25eth0]
    [fe80::1%eth0] [::1]. [v1.127.0.0.1]
    127.0.0.1%00.example.org cdn.example.org%00 cdn.example.org%2e%2e ::1 user@127.0.0.1 cdn.example.org@127.0.0.1
    127.0.0.1:80@cdn.example.org
""".split()

Answer = bytes | Callable[[BaseHTTPRequestHandler], None]


def plain_answer(body: bytes = DATA, status: str = "200 OK", *headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


def raw(*lines: str, body: bytes = b"") -> bytes:
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


def to(where: str, status: int = 302) -> bytes:
    return raw(f"HTTP/1.1 {status} Moved", f"Location: {where}", "Content-Length: 0")


class Site:
    """A server on loopback: "host/path" -> the bytes of an answer. It keeps the requests' heads."""

    def __init__(self, answers: dict[str, Answer], tls: ssl.SSLContext | None = None) -> None:
        self.requests: list[tuple[str, dict[str, str]]] = []
        self.stop = Event()
        site = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.close_connection = True
                site.requests.append((self.requestline, {name.lower(): value for name, value in self.headers.items()}))
                answer = answers[self.headers["host"] + self.path.partition("?")[0]]
                with suppress(OSError):
                    answer(self) if callable(answer) else self.wfile.write(answer)

            def log_message(self, *_: object) -> None: ...

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self.server.server_address[1]
        if tls:
            self.server.socket = tls.wrap_socket(self.server.socket, server_side=True)

    def __enter__(self) -> Site:
        Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop.set()
        self.server.shutdown()
        self.server.server_close()


class Net:
    """Stands for DNS and the network. What is connected to is `site`, whatever the address."""

    def __init__(self, names: dict[str, Sequence[Sequence[str]]], site: Site | None = None, dead: str = "") -> None:
        self.names = {name: list(answers) for name, answers in names.items()}
        self.site, self.dead = site, dead
        self.resolved: list[str] = []
        self.connected: list[tuple[str, int]] = []
        self.timeouts: list[float] = []

    def resolve(self, host: str, port: int) -> Sequence[str]:
        """The name's next answer; its last one again and again."""
        self.resolved.append(host)
        if host not in self.names:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        answers = self.names[host]
        return answers.pop(0) if len(answers) > 1 else answers[0]

    def connect(self, address: str, port: int, seconds: float) -> socket.socket:
        self.connected.append((address, port))
        self.timeouts.append(seconds)
        if self.site is None or address == self.dead:
            raise ConnectionRefusedError(111, "Connection refused")
        return open_socket("127.0.0.1", self.site.port, seconds)

    def guard(self, *hosts: str, **options: object) -> UrlGuard:
        return UrlGuard(hosts, resolve=self.resolve, connect=self.connect, **options)


def refused(guard: UrlGuard, url: str) -> str:
    """The error's text, which is one line."""
    with pytest.raises(ImageError) as caught:
        guard.fetch(url)
    text = str(caught.value)
    assert text.isprintable() and len(text) < 1000
    text.encode()
    return text


@contextmanager
def site_of(answers: dict[str, Answer], *hosts: str, **options: object) -> Iterator[tuple[Site, Net, UrlGuard]]:
    """A site, and a guard for which every one of the hosts is at PUBLIC."""
    names = {host.partition(":")[0]: [[PUBLIC]] for host in hosts or (CDN,)}
    with Site(answers) as site:
        net = Net(names, site)
        yield site, net, net.guard(*(hosts or (CDN,)), **options)


def lenient(host: str, port: int) -> list[str]:
    """Resolves as the most forgiving resolver would: numbers of all forms are addresses, and nothing follows a %."""
    bare = host.strip("[]").partition("%")[0].rstrip(".")
    with suppress(ValueError):
        return [str(ip_address(bare))]
    with suppress(OSError):
        return [socket.inet_ntoa(socket.inet_aton(bare))]
    return ["127.0.0.1"]


# what a public address is


@pytest.mark.parametrize("address", NOT_PUBLIC)
def test_addresses_that_are_not_public(address: str) -> None:
    assert not is_public(address)
    with suppress(ValueError):
        assert not is_public(ip_address(address).exploded)


@pytest.mark.parametrize("address", IS_PUBLIC)
def test_addresses_that_are_public(address: str) -> None:
    assert is_public(address)
    assert is_public(ip_address(address).exploded)


@pytest.mark.parametrize("text", ["", "1", "2130706433", "127.1", "0x5d.1", "093.184.215.14", "example.org", "[::1]"])
def test_what_is_no_address_is_not_public(text: str) -> None:
    assert not is_public(text)


@given(st.one_of(st.integers(0, 2**32 - 1).map(IPv4Address), st.integers(0, 2**128 - 1).map(IPv6Address)))
def test_public_is_at_least_what_ipaddress_calls_global(ip: IPv4Address | IPv6Address) -> None:
    if is_public(str(ip)):
        assert ip.is_global
        assert not (ip.is_multicast or ip.is_reserved or ip.is_private or ip.is_loopback or ip.is_link_local)


@given(st.integers(0, 2**32 - 1))
def test_a_nat64_address_is_as_public_as_the_one_that_it_carries(inner: int) -> None:
    assert is_public(str(IPv6Address(int(IPv6Address("64:ff9b::")) + inner))) == is_public(str(IPv4Address(inner)))


@given(st.integers(0, 2**32 - 1), st.sampled_from(["::", "::ffff:0:0", "64:ff9b:1::", "2001::"]))
def test_other_forms_that_carry_an_address_are_not_public(inner: int, prefix: str) -> None:
    assert not is_public(str(IPv6Address(int(IPv6Address(prefix)) + inner)))
    assert not is_public(str(IPv6Address(int(IPv6Address("2002::")) + (inner << 80))))


# without the option


@pytest.mark.parametrize(
    "url", [f"http://{CDN}/a.jpg", f"https://{PUBLIC}/", "http://127.0.0.1/", "file:///etc/passwd", ""]
)
def test_without_hosts_no_name_is_resolved_and_no_socket_opened(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise AssertionError("the network was touched")

    for name in ("socket", "getaddrinfo", "create_connection", "gethostbyname"):
        monkeypatch.setattr(socket, name, fail)
    assert "this server fetches no URLs; start it with --allow-url-host" in refused(UrlGuard(), url)


# hosts and addresses that are refused: 0 connections


@pytest.mark.parametrize("host", HOSTS_THAT_ARE_PRIVATE)
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_private_hosts_in_all_spellings_are_never_connected(host: str, scheme: str) -> None:
    resolved: list[str] = []
    net = Net({})

    def resolve(host: str, port: int) -> list[str]:
        resolved.append(host)
        return lenient(host, port)

    guard = UrlGuard((CDN, "*.example.net", PUBLIC), resolve=resolve, connect=net.connect)
    refused(guard, f"{scheme}://{host}/a.jpg")
    assert (resolved, net.connected) == ([], [])

    try:  # the operator allows the very host
        guard = UrlGuard((CDN, host), resolve=resolve, connect=net.connect)
    except OptionError:  # it is no host at all
        return
    text = refused(guard, f"{scheme}://{host}/a.jpg")
    assert net.connected == []
    assert "not public" in text or "plain digits" in text or host == "::1"  # which needs brackets in a URL


@pytest.mark.parametrize("address", NOT_PUBLIC)
def test_an_allowed_host_at_a_private_address_is_not_connected(address: str) -> None:
    for answer in ([address], [PUBLIC, address], [address, PUBLIC], [PUBLIC, PUBLIC6, address]):
        net = Net({CDN: [answer]})
        text = refused(net.guard(CDN), f"http://{CDN}/a.jpg")
        assert text == f"http://{CDN}/a.jpg: host '{CDN}' has an address that is not public"
        assert (net.resolved, net.connected) == ([CDN], [])


@pytest.mark.parametrize("address", NOT_PUBLIC)
def test_a_redirect_to_a_private_address_is_not_connected(address: str) -> None:
    literal = f"[{address}]" if ":" in address else address
    inside = "inside.example.org"
    names = {CDN: [[PUBLIC]], inside: [[address]], address: [[address]]}
    hosts = {"literal": literal, "name": inside}
    with Site({f"{CDN}/{key}": to(f"http://{host}/secret") for key, host in hosts.items()}) as site:
        for allowed in ((CDN,), (CDN, inside), *([] if "%" in address else [(CDN, inside, address)])):
            for key, host in hosts.items():
                net = Net(names, site)
                text = refused(net.guard(*allowed), f"http://{CDN}/{key}")
                assert net.connected == [(PUBLIC, 80)]
                assert ("not public" in text) == (host.strip("[]") in allowed)


@pytest.mark.parametrize(
    "host",
    "1572394766 0x5db8d70e 0135.0270.0327.016 93.12113678 93.184.55054 ９３.184.215.14 93.184.215.14. 93。184。215。14 "
    "[::ffff:93.184.215.14] [::93.184.215.14] [64:ff9b::5db8:d70e] 093.184.215.14 93.184.215.014".split(),
)
def test_an_allowed_address_is_not_reached_by_another_spelling(host: str) -> None:
    resolved: list[str] = []
    net = Net({})
    guard = UrlGuard((PUBLIC,), resolve=lambda host, port: resolved.append(host) or [PUBLIC], connect=net.connect)
    refused(guard, f"http://{host}/a.jpg")
    assert (resolved, net.connected) == ([], [])


@pytest.mark.parametrize(
    ("host", "sent"), [(PUBLIC, PUBLIC), (f"[{PUBLIC6}]", f"[{PUBLIC6}]"), ("1572394766", "1572394766")]
)
def test_a_public_address_is_fetched_by_the_very_text_that_is_allowed(host: str, sent: str) -> None:
    with Site({f"{sent}/a.jpg": plain_answer()}) as site:
        net = Net({}, site)
        for allowed in {host, host.strip("[]")}:
            guard = UrlGuard((allowed,), resolve=lenient, connect=net.connect)
            assert guard.fetch(f"http://{host}/a.jpg") == DATA
    assert set(net.connected) == {(PUBLIC6 if ":" in host else PUBLIC, 80)}


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("", "not a URL of http or https"),
        ("a.jpg", "not a URL"),
        (f"//{CDN}/a.jpg", "not a URL"),
        (f"ftp://{CDN}/a.jpg", "not a URL"),
        (f"file://{CDN}/etc/passwd", "not a URL"),
        (f"gopher://{CDN}/", "not a URL"),
        ("data:image/png;base64,AAAA", "not a URL"),
        (f"http:{CDN}/a.jpg", "host cannot be read"),
        (f"http:/{CDN}/a.jpg", "host cannot be read"),
        (f"http:///{CDN}/a.jpg", "host cannot be read"),
        ("http://", "host cannot be read"),
        ("http://:80/", "host cannot be read"),
        (f"http://{CDN}:0/", "host cannot be read"),
        (f"http://{CDN}:65536/", "host cannot be read"),
        (f"http://{CDN}:8O/", "host cannot be read"),
        (f"http://{CDN}:８０/", "host cannot be read"),
        (f"http://{CDN}:80:80/", "host cannot be read"),
        (f"http://{CDN}:-80/", "host cannot be read"),
        (f"http://.{CDN}/", "host cannot be read"),
        (f"http://{CDN}../", "host cannot be read"),
        ("http://cdn..example.org/", "host cannot be read"),
        ("http://[::1/", "host cannot be read"),
        ("http://[cdn.example.org]/", "host cannot be read"),
        ("http://[]/", "host cannot be read"),
        (f"http://[::1]{CDN}/", "host cannot be read"),
        (f"http://{'a' * 64}.example.org/", "host cannot be read"),
        (f"http://{'ü' * 64}.example.org/", "host cannot be read"),
        ("http://" + "a." * 127 + "example.org/", "host cannot be read"),
        (f"http://{CDN}\u2100/", "host cannot be read"),  # ℀ is a/c in its plain form
        ("http://xn--\u00fc.example.org/", "host cannot be read"),
        (f"http://user:secret@{CDN}/a.jpg", "user name"),
        (f"http://user@{CDN}/a.jpg", "user name"),
        (f"http://@{CDN}/a.jpg", "user name"),
        (f"http://{CDN}/a b.jpg", "spaces"),
        (f" http://{CDN}/", "spaces"),
        (f"http://{CDN}/\r\nX: y", "spaces"),
        (f"http://{CDN}\n/", "spaces"),
        (f"ht\ntp://{CDN}/", "spaces"),
        (f"http://{CDN}/\t", "spaces"),
        (f"http://{CDN}/\0", "spaces"),
        (f"http://{CDN}/\x7f", "spaces"),
        (f"http://{CDN}/\x85", "spaces"),
        (f"http://{CDN}/\u2028", "spaces"),
        (f"http://{CDN}/\u202e", "spaces"),
        (f"http://{CDN}/\ud800", "spaces"),
        (f"http://127.0.0.1\\@{CDN}/", "spaces"),
        (f"http:\\\\{CDN}/", "spaces"),
        (f"http://{CDN}/" + "a" * 2048, "at most 2048"),
        ("a" * 100_000, "at most 2048"),
    ],
)
def test_what_is_not_plainly_a_url_is_refused_before_anything_else(url: str, why: str) -> None:
    net = Net({CDN: [[PUBLIC]]})
    text = refused(net.guard(CDN, "*.example.org"), url)
    assert why in text
    assert "secret" not in text
    assert (net.resolved, net.connected) == ([], [])


# which hosts are allowed


@pytest.mark.parametrize(
    ("allowed", "url", "connected"),
    [
        (CDN, f"http://{CDN}/a", True),
        (CDN, f"https://{CDN}/a", True),
        (CDN, f"http://{CDN}", True),
        (CDN, f"http://{CDN}?a", True),
        (CDN, f"http://{CDN}:/a", True),
        (CDN, f"http://{CDN}:80/a", True),
        (CDN, f"HTTP://{CDN.upper()}/a", True),
        (CDN.upper(), f"http://{CDN}/a", True),
        (CDN, f"http://{CDN}./a", True),
        (f"{CDN}.", f"http://{CDN}/a", True),
        (CDN, f"http://{CDN}:8080/a", False),
        (CDN, f"http://{CDN}:443/a", False),
        (CDN, f"https://{CDN}:80/a", False),
        (CDN, f"http://a.{CDN}/a", False),
        (CDN, "http://example.org/a", False),
        (CDN, "http://cdn.example.org.evil.example/a", False),
        (CDN, "http://evil.example/cdn.example.org", False),
        (CDN, "http://evil.example?cdn.example.org", False),
        (CDN, "http://evil.example#cdn.example.org", False),
        (CDN, "http://cdnxexample.org/a", False),
        (f"{CDN}:8080", f"http://{CDN}:8080/a", True),
        (f"{CDN}:8080", f"https://{CDN}:8080/a", True),
        (f"{CDN}:8080", f"http://{CDN}/a", False),
        (f"{CDN}:443", f"https://{CDN}/a", True),
        ("*.example.org", f"http://{CDN}/a", True),
        ("*.example.org", f"http://a.b.{CDN}/a", True),
        ("*.example.org", "http://example.org/a", False),
        ("*.example.org", "http://evilexample.org/a", False),
        ("*.example.org", "http://cdn.example.org.evil.example/a", False),
        ("*.example.org:8080", f"http://{CDN}:8080/a", True),
        ("*.example.org:8080", f"http://{CDN}/a", False),
        ("bücher.example", "http://bücher.example/a", True),
        ("bücher.example", "http://BÜCHER.example/a", True),
        ("bücher.example", "http://bu\u0308cher.example/a", True),
        ("bücher.example", "http://xn--bcher-kva.example/a", True),
        ("xn--bcher-kva.example", "http://bücher。example/a", True),
        ("*.bücher.example", "http://a.xn--bcher-kva.example/a", True),
        ("bücher.example", "http://bucher.example/a", False),
        (CDN, "http://\uff43dn.example.org/a", True),  # full-width c: IDNA makes it a plain one
        (CDN, "http://\u0441dn.example.org/a", False),  # a Cyrillic letter that looks like c
        (f"[{PUBLIC6}]:8080", f"http://[{PUBLIC6}]:8080/", True),
        (PUBLIC6.upper(), f"http://[{PUBLIC6}]/", True),
        (PUBLIC6, f"http://[{IPv6Address(PUBLIC6).exploded}]/", False),
        (f"{PUBLIC}:8080", f"http://{PUBLIC}:8080/", True),
        (f"{PUBLIC}:8080", f"http://{PUBLIC}/", False),
    ],
)
def test_which_hosts_an_entry_allows(allowed: str, url: str, connected: bool) -> None:
    net = Net({})
    address = PUBLIC6 if "[" in url else PUBLIC
    guard = UrlGuard((allowed,), resolve=lambda *_: [address], connect=net.connect)
    text = refused(guard, url)
    assert len(net.connected) == connected
    assert ("Connection refused" in text) == connected
    assert ("is not allowed" in text) == (not connected)


@pytest.mark.parametrize(
    "entry",
    [
        *("", "example.org\n", " example.org", "ex ample.org"),
        *"""* *. . *.* a.* *a.org *.*.org *.0.0.1 *.0x1 *.1 *.[::1] *.::1 [::1 [example.org] https://example.org
        example.org/ example.org: example.org:0 example.org:65536 example.org:x user@example.org a..b -a.org
        １２７.0.0.1 127%2e0.0.1""".split(),
    ],
)
def test_an_entry_that_names_no_host_is_an_error_at_the_start(entry: str) -> None:
    with pytest.raises(OptionError, match=r"is no host; expected example\.org"):
        UrlGuard((CDN, entry))


def test_the_error_says_what_is_allowed() -> None:
    net = Net({})
    assert refused(net.guard(CDN, "*.example.net"), "http://evil.example:81/a?key=secret") == (
        "http://evil.example:81/a: host 'evil.example:81' is not allowed; "
        "the server allows: cdn.example.org, *.example.net"
    )
    many = net.guard(*(f"{n}a.example" for n in range(1000)))
    assert refused(many, "http://evil.example/").endswith(", 9a.example, ...")


# a fetch


def test_the_file_comes_from_exactly_the_address_of_the_name() -> None:
    with site_of({f"{CDN}/a/%C3%BC%20b.jpg": plain_answer()}, CDN) as (site, net, guard):
        assert guard.fetch(f"http://{CDN}/a/ü%20b.jpg?size=1&é={{}}#part") == DATA
    assert (net.resolved, net.connected) == ([CDN], [(PUBLIC, 80)])
    [(line, head)] = site.requests
    assert line == "GET /a/%C3%BC%20b.jpg?size=1&%C3%A9=%7B%7D HTTP/1.1"
    assert {name: head[name] for name in head if name != "user-agent"} == {
        "host": CDN,
        "accept": "*/*",
        "accept-encoding": "identity",
        "connection": "close",
    }


def test_a_name_that_is_not_ascii_is_asked_for_in_its_ascii_form() -> None:
    ascii_form = "xn--bcher-kva.example"
    with Site({f"{ascii_form}:8080/": plain_answer()}) as site:
        net = Net({ascii_form: [[PUBLIC]]}, site)
        assert net.guard("bücher.example:8080").fetch("http://Bücher.example:8080") == DATA
    assert (net.resolved, net.connected) == ([ascii_form], [(PUBLIC, 8080)])


def test_the_environment_sends_the_request_nowhere_else(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://user:secret@127.0.0.1:9")
    with site_of({f"{CDN}/": plain_answer()}) as (site, net, guard):
        assert guard.fetch(f"http://{CDN}/") == DATA
    assert net.connected == [(PUBLIC, 80)]
    assert "authorization" not in site.requests[0][1] and "proxy-authorization" not in site.requests[0][1]


def test_an_answer_of_dns_that_changes_is_asked_for_once() -> None:
    """Rebinding: the first answer is public, every later one is not."""
    with Site({f"{CDN}/": plain_answer()}) as site:
        net = Net({CDN: [[PUBLIC], ["127.0.0.1"]]}, site)
        assert net.guard(CDN).fetch(f"http://{CDN}/") == DATA
    assert (net.resolved, net.connected) == ([CDN], [(PUBLIC, 80)])


def test_each_redirect_resolves_and_checks_anew() -> None:
    with Site({f"{CDN}/": to(f"http://{CDN}/next"), f"{CDN}/next": plain_answer()}) as site:
        net = Net({CDN: [[PUBLIC], ["127.0.0.1"]]}, site)
        text = refused(net.guard(CDN), f"http://{CDN}/")
    assert "has an address that is not public" in text
    assert (net.resolved, net.connected) == ([CDN, CDN], [(PUBLIC, 80)])


def test_the_next_address_is_tried_when_one_does_not_answer() -> None:
    with Site({f"{CDN}/": plain_answer()}) as site:
        net = Net({CDN: [[PUBLIC6, PUBLIC]]}, site, dead=PUBLIC6)
        assert net.guard(CDN).fetch(f"http://{CDN}/") == DATA
    assert net.connected == [(PUBLIC6, 80), (PUBLIC, 80)]
    assert net.timeouts[0] <= 5  # half of the 10 seconds


def test_of_many_addresses_only_some_are_tried() -> None:
    net = Net({CDN: [[f"93.184.215.{n}" for n in range(200)]]})
    assert "cannot be fetched (Connection refused)" in refused(net.guard(CDN), f"http://{CDN}/")
    assert net.connected == [(f"93.184.215.{n}", 80) for n in range(4)]


@pytest.mark.parametrize("names", [{}, {CDN: [[]]}])
def test_a_name_without_an_address_is_one_error(names: dict[str, list[list[str]]]) -> None:
    net = Net(names)
    assert refused(net.guard(CDN), f"http://{CDN}/") == f"http://{CDN}/: host '{CDN}' has no address"
    assert net.connected == []


def test_the_systems_own_resolver_and_sockets_do_as_the_stubs() -> None:
    assert find_addresses("127.0.0.1", 80) == ["127.0.0.1"]
    assert find_addresses("::1", 80) == ["::1"]
    with Site({"127.0.0.1/": plain_answer()}) as site:
        with open_socket("127.0.0.1", site.port, 5) as opened:
            assert opened.getpeername() == ("127.0.0.1", site.port)
            assert opened.gettimeout() == 5
    with pytest.raises(OSError):
        open_socket("127.0.0.1", site.port, 5)
    for host in ("127.0.0.1", "2130706433", "0177.0.0.1", "0x7f.1", "127.1", "[::1]", "[::ffff:127.0.0.1]"):
        guard = UrlGuard((f"{host}:{site.port}",))  # nothing is stubbed: the check itself keeps it from connecting
        assert "has an address that is not public" in refused(guard, f"http://{host}:{site.port}/")
    assert site.requests == []


# redirects


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize(
    "where", ["/b.jpg", "b.jpg", "./x/../b.jpg", f"//{CDN}/b.jpg", f"http://{CDN}/b.jpg", f"http://{CDN}:80/b.jpg#x"]
)
def test_a_redirect_to_an_allowed_host_is_followed(where: str, status: int) -> None:
    with site_of({f"{CDN}/a": to(where, status), f"{CDN}/b.jpg": plain_answer()}) as (_, net, guard):
        assert guard.fetch(f"http://{CDN}/a") == DATA
    assert net.connected == [(PUBLIC, 80)] * 2


def test_a_redirects_address_may_have_letters_in_utf8() -> None:
    answers = {f"{CDN}/a": to("/ü".encode().decode("latin-1")), f"{CDN}/%C3%BC": plain_answer()}
    with site_of(answers) as (_, _net, guard):
        assert guard.fetch(f"http://{CDN}/a") == DATA


def test_a_redirect_from_one_allowed_host_to_another_goes_to_its_address() -> None:
    with Site({f"{CDN}/": to("http://pictures.example.net/"), "pictures.example.net/": plain_answer()}) as site:
        net = Net({CDN: [[PUBLIC]], "pictures.example.net": [[OTHER_PUBLIC]]}, site)
        assert net.guard(CDN, "*.example.net").fetch(f"http://{CDN}/") == DATA
    assert net.connected == [(PUBLIC, 80), (OTHER_PUBLIC, 80)]


@pytest.mark.parametrize(
    ("where", "why"),
    [
        ("http://evil.example/?key=secret", "host 'evil.example' is not allowed"),
        ("//evil.example/", "host 'evil.example' is not allowed"),
        (f"http://{CDN}:8080/", f"host '{CDN}:8080' is not allowed"),
        (f"http://a.{CDN}/", "is not allowed"),
        ("file:///etc/passwd", "not a URL of http or https"),
        ("ftp://evil.example/", "not a URL of http or https"),
        ("data:image/png;base64,AAAA", "not a URL of http or https"),
        (f"http://user:secret@{CDN}/", "user name"),
        ("http://127.0.0.1/", "is not allowed"),
        ("http://2130706433/", "is not allowed"),
        ("http://[::ffff:127.0.0.1]/", "is not allowed"),
        ("http://127.0.0.1%2f@cdn.example.org/", "user name"),
        ("http://[::1/", "cannot be read"),
        ("/a b", "spaces"),
        ("/a\\b", "spaces"),
        ("/a\x01", "cannot be read"),
        (f"http://{CDN}\r\n /", "cannot be read"),  # a header's line that goes on in the next
        ("/" + "a" * 3000, "cannot be read"),
        ("/" + "a" * 2040, "at most 2048"),
    ],
)
def test_a_redirect_elsewhere_is_refused(where: str, why: str) -> None:
    with site_of({f"{CDN}/a": to(where)}) as (_, net, guard):
        text = refused(guard, f"http://{CDN}/a?token=secret")
    assert text.startswith(f"http://{CDN}/a: redirects to ")
    assert why in text and "secret" not in text
    assert (net.resolved, net.connected) == ([CDN], [(PUBLIC, 80)])


@pytest.mark.parametrize(
    "answer", [raw("HTTP/1.1 302 Found"), raw("HTTP/1.1 302 Found", "Location: /a", f"Location: http://{CDN}/b")]
)
def test_a_redirect_has_one_address(answer: bytes) -> None:
    with site_of({f"{CDN}/a": answer}) as (_, net, guard):
        assert "addresses; expected one" in refused(guard, f"http://{CDN}/a")
    assert len(net.connected) == 1


def test_three_redirects_are_followed_and_not_four() -> None:
    answers: dict[str, Answer] = {f"{CDN}/{n}": to(f"/{n + 1}") for n in range(4)} | {f"{CDN}/4": plain_answer()}
    with site_of(answers) as (_, net, guard):
        assert guard.fetch(f"http://{CDN}/1") == DATA
        assert len(net.connected) == 4
        assert "more than 3 redirects" in refused(guard, f"http://{CDN}/0")
        assert len(net.connected) == 8


@pytest.mark.parametrize("where", ["/a", "", "?", f"http://{CDN}/b"])
def test_a_loop_ends(where: str) -> None:
    with site_of({f"{CDN}/a": to(where), f"{CDN}/b": to("/a")}) as (_, net, guard):
        assert "more than 3 redirects" in refused(guard, f"http://{CDN}/a")
    assert len(net.connected) == 4


def test_with_no_redirects_none_is_followed() -> None:
    with site_of({f"{CDN}/a": to("/b"), f"{CDN}/b": plain_answer()}, redirects=0) as (_, net, guard):
        assert "more than 0 redirects" in refused(guard, f"http://{CDN}/a")
        assert guard.fetch(f"http://{CDN}/b") == DATA
    assert len(net.connected) == 2


# answers


@pytest.mark.parametrize(
    "status",
    ["204 No Content", "206 Partial Content", "300 X", "304 X", "400 X", "401 X", "403 X", "404 X", "500 X", "201 X"],
)
def test_only_status_200_is_a_file(status: str) -> None:
    with site_of({f"{CDN}/": plain_answer(b"text", status)}) as (_, _net, guard):
        assert f"the host answers with status {status[:3]}; expected 200" in refused(guard, f"http://{CDN}/")


def test_a_file_of_exactly_the_limit_is_taken_and_one_byte_more_is_not() -> None:
    answers = {
        f"{CDN}/said": plain_answer(),
        f"{CDN}/unsaid": raw("HTTP/1.1 200 OK", body=DATA),
        f"{CDN}/chunked": raw("HTTP/1.1 200 OK", "Transfer-Encoding: chunked", body=chunks(DATA, 1000)),
    }
    with site_of(answers, max_bytes=len(DATA)) as (_, net, exact):
        short = net.guard(CDN, max_bytes=len(DATA) - 1)
        for place in answers:
            assert exact.fetch(f"http://{place}") == DATA
            assert f"over the limit of {len(DATA) - 1} bytes" in refused(short, f"http://{place}")


def test_an_endless_file_is_cut_at_the_limit() -> None:
    sent = [0]

    def endless(handler: BaseHTTPRequestHandler) -> None:
        handler.wfile.write(raw("HTTP/1.1 200 OK"))
        while not site.stop.is_set():
            handler.wfile.write(bytes(1 << 16))
            sent[0] += 1 << 16

    with site_of({f"{CDN}/": endless}, max_bytes=1 << 20) as (site, _, guard):
        assert "over the limit of 1048576 bytes" in refused(guard, f"http://{CDN}/")
    assert sent[0] < 64 << 20  # the limit, and what the sockets' buffers hold


@pytest.mark.parametrize(
    "head",
    [
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-1\r\n",  # http.client reads such a chunk to the end
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n",  # an endless trailer
    ],
)
def test_what_http_client_reads_without_a_bound_is_bounded(head: str) -> None:
    def endless(handler: BaseHTTPRequestHandler) -> None:
        handler.wfile.write(head.encode())
        while not site.stop.is_set():
            handler.wfile.write(b"X: y\r\n" * 10_000)

    with site_of({f"{CDN}/": endless}, max_bytes=1 << 16) as (site, _, guard):
        assert "the host sends more than was asked for" in refused(guard, f"http://{CDN}/")


def test_answers_with_status_100_do_not_go_on_for_ever() -> None:
    def endless(handler: BaseHTTPRequestHandler) -> None:
        while not site.stop.is_set():
            handler.wfile.write(b"HTTP/1.1 100 Continue\r\n\r\n" * 1000)

    with site_of({f"{CDN}/": endless}, max_bytes=1 << 16) as (site, _, guard):
        assert "the host sends more than was asked for" in refused(guard, f"http://{CDN}/")


def chunks(body: bytes, size: int) -> bytes:
    parts = [body[start : start + size] for start in range(0, len(body), size)]
    return b"".join(b"%x;note=1\r\n%s\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"


@pytest.mark.parametrize("size", [1, 7, 4096, len(DATA)])
def test_a_body_in_chunks_is_put_together(size: int) -> None:
    answer = raw("HTTP/1.1 200 OK", "Transfer-Encoding: Chunked", body=chunks(DATA, size))
    with site_of({f"{CDN}/": answer}) as (_, _net, guard):
        assert guard.fetch(f"http://{CDN}/") == DATA


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (b"", "cannot be fetched (RemoteDisconnected)"),
        (b"HTTP/1.1", "BadStatusLine"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "BadStatusLine"),
        (b"HTTP/1.1 abc\r\n\r\n", "BadStatusLine"),
        (b"HTTP/2 200 OK\r\n\r\n", "UnknownProtocol"),
        (b"\xff\xfe\r\n" * 10, "BadStatusLine"),
        (b"X" * 100_000, "LineTooLong"),
        (raw("HTTP/1.1 200 OK", "X: " + "y" * 70_000), "LineTooLong"),
        (raw("HTTP/1.1 200 OK", *(f"X{n}: y" for n in range(200))), "HTTPException"),
        (plain_answer()[:-1], f"cut off after {len(DATA) - 1} of {len(DATA)} bytes"),
        (raw("HTTP/1.1 200 OK", "Content-Length: 5"), "cut off after 0 of 5 bytes"),
        (raw("HTTP/1.1 200 OK", "Content-Length: -5", body=DATA), "Content-Length"),
        (raw("HTTP/1.1 200 OK", "Content-Length: 1_0", body=DATA), "Content-Length"),
        (raw("HTTP/1.1 200 OK", "Content-Length: +10", body=DATA), "Content-Length"),
        (raw("HTTP/1.1 200 OK", "Content-Length: " + "9" * 5000, body=DATA), "Content-Length"),
        (raw("HTTP/1.1 200 OK", "Content-Length: 5", "Content-Length: 6", body=DATA), "Content-Length"),
        (raw("HTTP/1.1 200 OK", f"Content-Length: {1 << 40}"), "over the limit"),
        (raw("HTTP/1.1 200 OK", "Transfer-Encoding: chunked", body=chunks(DATA, 999)[:5000]), "cut off"),
        (raw("HTTP/1.1 200 OK", "Transfer-Encoding: chunked", body=b"zz\r\n" + DATA), "cut off"),
        (raw("HTTP/1.1 200 OK", "Transfer-Encoding: chunked", body=b"-5\r\n" + DATA), "ValueError"),
        (raw("HTTP/1.1 200 OK", "Transfer-Encoding: chunked", body=b"f" * 60_000 + b"\r\n" + DATA), "cut off"),
        (raw("HTTP/1.1 200 OK", "Transfer-Encoding: gzip, chunked", body=DATA), "encoding that was not asked for"),
        (raw("HTTP/1.1 200 OK", "Transfer-Encoding: gzip", body=DATA), "encoding that was not asked for"),
        (plain_answer(DATA, "200 OK", "Content-Encoding: gzip"), "compressed"),
        (plain_answer(DATA, "200 OK", "Content-Encoding: identity", "Content-Encoding: BR"), "compressed"),
    ],
)
def test_a_broken_answer_is_one_error(answer: bytes, why: str) -> None:
    with site_of({f"{CDN}/": answer}) as (_, net, guard):
        assert why in refused(guard, f"http://{CDN}/")
    assert len(net.connected) == 1


def test_identity_is_no_compression() -> None:
    with site_of({f"{CDN}/": plain_answer(DATA, "200 OK", "Content-Encoding: Identity")}) as (_, _net, guard):
        assert guard.fetch(f"http://{CDN}/") == DATA


def test_an_error_does_not_repeat_what_the_host_says() -> None:
    with site_of({f"{CDN}/": b"+OK secret\r\n", f"{CDN}/b": plain_answer(b"", "403 secret")}) as (_, _net, guard):
        assert "secret" not in refused(guard, f"http://{CDN}/")
        assert "secret" not in refused(guard, f"http://{CDN}/b")


# time: each of these would go on for ever


def drip(head: bytes, part: bytes) -> Callable[[Site], Callable[[BaseHTTPRequestHandler], None]]:
    def answer(site: Site) -> Callable[[BaseHTTPRequestHandler], None]:
        def write(handler: BaseHTTPRequestHandler) -> None:
            handler.wfile.write(head)
            while not site.stop.wait(0.02):  # far more often than the time limit
                handler.wfile.write(part)

        return write

    return answer


@pytest.mark.parametrize(
    ("head", "part"),
    [
        (b"", b""),
        (b"", b"H"),
        (b"HTTP/1.1 200 OK\r\n", b"X"),
        (b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 100 Continue\r\n\r\n"),
        (raw("HTTP/1.1 200 OK", "Content-Length: 100000"), b""),
        (raw("HTTP/1.1 200 OK", "Content-Length: 100000"), b"x"),
        (raw("HTTP/1.1 200 OK"), b"x"),
        (raw("HTTP/1.1 200 OK", "Transfer-Encoding: chunked"), b"1\r\nx\r\n"),
        (raw("HTTP/1.1 200 OK", "Transfer-Encoding: chunked"), b"1"),
    ],
)
def test_a_host_that_drips_is_cut(head: bytes, part: bytes) -> None:
    answers: dict[str, Answer] = {}
    with site_of(answers, seconds=0.3) as (site, _, guard):
        answers[f"{CDN}/"] = drip(head, part)(site)
        assert "not fetched in time, 0.3 seconds" in refused(guard, f"http://{CDN}/")


def test_the_time_is_for_all_redirects_together() -> None:
    answers: dict[str, Answer] = {}
    with site_of(answers, seconds=0.3, redirects=1_000_000) as (_, _net, guard):
        answers[f"{CDN}/"] = to("/")
        assert "not fetched in time" in refused(guard, f"http://{CDN}/")


def test_a_resolver_that_hangs_is_left_behind() -> None:
    done = Event()
    net = Net({})
    guard = UrlGuard((CDN,), seconds=0.1, resolve=lambda *_: done.wait(60) and [PUBLIC], connect=net.connect)
    assert "not fetched in time" in refused(guard, f"http://{CDN}/")
    done.set()
    assert net.connected == []


def test_a_connection_gets_the_time_that_is_left() -> None:
    net = Net({CDN: [[PUBLIC]]})
    refused(net.guard(CDN, seconds=3), f"http://{CDN}/")
    assert 0 < net.timeouts[0] <= 3


def test_every_socket_is_closed() -> None:
    opened: list[socket.socket] = []
    answers = {f"{CDN}/": plain_answer(), f"{CDN}/a": to("/"), f"{CDN}/b": b"broken", f"{CDN}/c": to("file:///")}
    with site_of(answers) as (_, net, _guard):

        def connect(*where: object) -> socket.socket:
            opened.append(net.connect(*where))
            return opened[-1]

        guard = UrlGuard((CDN,), resolve=net.resolve, connect=connect)
        for url in (f"http://{place}" for place in answers):
            with suppress(ImageError):
                guard.fetch(url)
    assert [each.fileno() for each in opened] == [-1] * 5


# https


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate and its key for CDN and for PUBLIC, signed by itself."""
    if not shutil.which("openssl"):
        pytest.skip("openssl is not installed")
    file = tmp_path_factory.mktemp("tls") / "both.pem"
    names = f"subjectAltName=DNS:{CDN},IP:{PUBLIC}"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=test"]
    key = file.with_name("key.pem")
    command += ["-addext", names, "-keyout", str(key), "-out", str(file)]
    made = subprocess.run(command, check=False, capture_output=True, text=True)
    if made.returncode:
        pytest.skip(f"openssl makes no certificate: {made.stderr}")
    file.write_text(file.read_text() + key.read_text())
    return file


@contextmanager
def tls_site(certificate: Path, answers: dict[str, Answer]) -> Iterator[tuple[Site, list[str | None]]]:
    """An https site, and the names that clients say in the handshake."""
    named: list[str | None] = []
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    context.sni_callback = lambda _, name, __: named.append(name)
    with Site(answers, context) as site:
        yield site, named


def test_https_says_the_name_and_checks_the_certificate(certificate: Path) -> None:
    other = "other.example.org"
    trusting = ssl.create_default_context(cafile=certificate)
    with tls_site(certificate, {f"{CDN}/a": plain_answer(), f"{other}/a": plain_answer()}) as (site, named):
        net = Net({CDN: [[PUBLIC]], other: [[PUBLIC]], PUBLIC: [[PUBLIC]], OTHER_PUBLIC: [[OTHER_PUBLIC]]}, site)
        guard = net.guard(CDN, other, PUBLIC, OTHER_PUBLIC, tls=trusting)
        assert guard.fetch(f"https://{CDN}/a") == DATA
        assert guard.fetch(f"https://{CDN.upper()}./a") == DATA
        wrong = refused(guard, f"https://{other}/a")
        assert "the host's certificate is not valid (Hostname mismatch" in wrong
        assert "the host's certificate is not valid (IP address mismatch" in refused(guard, f"https://{OTHER_PUBLIC}/a")
        # the system does not trust it
        assert "the host's certificate is not valid (self" in refused(net.guard(CDN), f"https://{CDN}/a")
    assert named == [CDN, CDN, other, None, CDN]
    assert len(site.requests) == 2
    assert net.connected == [(PUBLIC, 443)] * 3 + [(OTHER_PUBLIC, 443), (PUBLIC, 443)]


def test_an_address_is_checked_against_the_certificates_addresses(certificate: Path) -> None:
    with tls_site(certificate, {f"{PUBLIC}/a": plain_answer()}) as (site, _):
        net = Net({PUBLIC: [[PUBLIC]]}, site)
        guard = net.guard(PUBLIC, tls=ssl.create_default_context(cafile=certificate))
        assert guard.fetch(f"https://{PUBLIC}/a") == DATA


def test_https_does_not_become_http(certificate: Path) -> None:
    answers: dict[str, Answer] = {f"{CDN}/a": to(f"http://{CDN}/b"), f"{CDN}/c": to("/d"), f"{CDN}/d": plain_answer()}
    with tls_site(certificate, answers) as (site, _):
        net = Net({CDN: [[PUBLIC]]}, site)
        guard = net.guard(CDN, tls=ssl.create_default_context(cafile=certificate))
        assert f"redirects to http://{CDN}/b: that leaves https" in refused(guard, f"https://{CDN}/a")
        assert net.connected == [(PUBLIC, 443)]
        assert guard.fetch(f"https://{CDN}/c") == DATA


def test_http_may_become_https_and_not_go_back(certificate: Path) -> None:
    answers: dict[str, Answer] = {f"{CDN}/c": plain_answer(), f"{CDN}/d": to(f"http://{CDN}/a")}
    with tls_site(certificate, answers) as (secure, _):
        open_answers: dict[str, Answer] = {f"{CDN}/a": to(f"https://{CDN}/c"), f"{CDN}/b": to(f"https://{CDN}/d")}
        with Site(open_answers) as site:
            net = Net({CDN: [[PUBLIC]]})

            def connect(address: str, port: int, seconds: float) -> socket.socket:
                net.site = secure if port == 443 else site
                return net.connect(address, port, seconds)

            tls = ssl.create_default_context(cafile=certificate)
            guard = UrlGuard((CDN,), resolve=net.resolve, connect=connect, tls=tls)
            assert guard.fetch(f"http://{CDN}/a") == DATA
            assert "that leaves https" in refused(guard, f"http://{CDN}/b")
    assert [port for _, port in net.connected] == [80, 443, 80, 443]


def test_a_host_that_speaks_no_tls_is_one_error() -> None:
    def no_tls(handler: BaseHTTPRequestHandler) -> None:
        raise AssertionError("a request came")

    with site_of({f"{CDN}/": no_tls}) as (site, _, guard):
        assert "cannot be fetched (" in refused(guard, f"https://{CDN}/")
    assert site.requests == []


def test_a_handshake_that_does_not_end_is_cut() -> None:
    opened: list[socket.socket] = []
    with socket.create_server(("127.0.0.1", 0)) as silent:

        def connect(address: str, port: int, seconds: float) -> socket.socket:
            opened.append(socket.create_connection(silent.getsockname()))  # its time is not limited yet
            return opened[0]

        guard = UrlGuard((CDN,), seconds=0.2, resolve=lambda *_: [PUBLIC], connect=connect)
        assert "not fetched in time" in refused(guard, f"https://{CDN}/")
    assert opened[0].gettimeout() <= 0.2


# names in errors


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("https://a.org/b.jpg?key=secret#secret", "https://a.org/b.jpg"),
        ("https://a.org/b.jpg#secret?secret", "https://a.org/b.jpg"),
        ("https://user:secret@a.org/@b", "https://a.org/@b"),
        ("https://us@er:secret@a.org/", "https://a.org/"),
        ("http:user:secret@a.org/", "http:a.org/"),
        ("HTTP:\\\\user:secret@a.org", "HTTP:\\\\a.org"),
        ("//user:secret@a.org", "//a.org"),
        ("", "<an empty URL>"),
        ("?secret", "<an empty URL>"),
        ("http://a.org/" + "b" * 187, "http://a.org/" + "b" * 187),
        ("http://a.org/" + "b" * 188, "http://a.org/" + "b" * 184 + "..."),
        ("b" * 2049, "<a URL of 2049 characters>"),
        ("http://a\r\nb\0\u2028\u202e\ud800ü", "http://a\\r\\nb\\x00\\u2028\\u202e\\ud800ü"),
    ],
)
def test_an_error_names_the_url_without_secrets(url: str, name: str) -> None:
    assert url_name(url) == name


@given(st.text(max_size=3000))
def test_a_name_is_one_line_of_at_most_200_characters(url: str) -> None:
    name = url_name(url)
    assert name.isprintable() and 0 < len(name) <= 200 and name.encode()


# all of it at random

PIECES = [*"0123456789abcdefx.:-_[]%@*/\\?# １。①ß\n\u200b", "user:pw@", CDN]
PIECES += """0x 127 93.184.215.14 ::ffff: xn-- %2e cdn example .example.net localhost 169.254.169.254 2130706433 :80
    :443""".split()
HOSTS = st.lists(st.sampled_from(PIECES), min_size=1, max_size=8).map("".join) | st.text(max_size=20)
FOUND = st.lists(st.sampled_from([*NOT_PUBLIC, *IS_PUBLIC, *IS_PUBLIC * 8]), max_size=3)


@given(HOSTS, FOUND, st.sampled_from(["http://", "https://", "HTTP://", "http:", "ftp://", "//", ""]), st.booleans())
def test_a_random_host_is_connected_only_if_allowed_and_public(
    host: str, found: list[str], scheme: str, allow: bool
) -> None:
    resolved: list[str] = []
    net = Net({})

    def resolve(host: str, port: int) -> list[str]:
        resolved.append(host)
        return found

    allowed: tuple[str, ...] = (CDN, "*.example.net", PUBLIC)
    with suppress(OptionError):  # the random host is allowed too, if it is one
        allowed = UrlGuard((*allowed, host)).hosts if allow else allowed
    for url in (f"{scheme}{host}", f"{scheme}{host}/a.jpg", f"{scheme}{CDN}{host}", f"{scheme}{host}{CDN}"):
        resolved.clear()
        net.connected.clear()
        refused(UrlGuard(allowed, resolve=resolve, connect=net.connect), url)  # the stub takes no connection
        if resolved:
            [asked] = resolved
            plain_hosts = [CDN, PUBLIC, *(UrlGuard((entry,))._allowed[0].host for entry in allowed[3:])]
            assert asked in plain_hosts or asked.endswith(".example.net")
        if net.connected:
            assert resolved
            assert set(found) <= set(IS_PUBLIC)
            assert {address for address, _ in net.connected} <= set(found)
        elif resolved:
            assert not found or set(found) & set(NOT_PUBLIC)
