"""Requests that no good client makes, as bytes for a socket: each function draws one of its kind."""

from __future__ import annotations

import base64
import gzip
import json
import random
import zlib
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

from qalign_fast.serve.schemas import PICTURE

PNG = base64.b64decode(PICTURE)
JSON_TYPE = {"content-type": "application/json"}
INFER = "/v2/models/mini/infer"
BODIES: dict[str, Any] = {
    "/v1/score": {"images": [{"b64": PICTURE, "source": "a.png"}, PICTURE], "task": "quality", "logits": True},
    "/v1/score/video": {"frames": [PICTURE, PICTURE], "timeline": True, "fps": 2, "max_frames": 3},
    "/v1/compare": {"images": [PICTURE, {"b64": PICTURE, "source": "b.png"}]},
    "/predict": {"inputs": [PICTURE, [PICTURE]], "raw_scores": True},
    "/rerank": {"query": "quality", "texts": [PICTURE, PICTURE], "return_text": True},
    "/v1/rerank": {"query": "quality", "documents": [PICTURE], "top_n": 1, "return_documents": True},
    "/classify": {"model": "mini", "input": [PICTURE, {"type": "image_url", "image_url": {"url": PICTURE}}]},
    "/v1/models/mini:predict": {"instances": [{"image_bytes": {"b64": PICTURE}}, PICTURE]},
    INFER: {
        "id": "1",
        "inputs": [{"name": "image", "shape": [1], "datatype": "BYTES", "data": [PICTURE]}],
        "outputs": [{"name": "score"}, {"name": "status"}],
        "parameters": {"timeout": 9_000_000, "task": "quality"},
    },
}
GETS = ("/", "/health", "/metrics", "/v1/models", "/v1/models/mini", "/v2", "/v2/models/mini", "/info", "/openapi.json")
ODD_VALUES: list[Any] = [
    None,
    True,
    -1,
    0,
    1e308,
    -1e-308,
    10**40,
    "",
    "\0",
    "\ud800",
    "\udfff\ud800",
    "é\u2028",
    [],
    {},
]
ODD_VALUES += [
    [[]],
    [None],
    {"b64": None},
    {"b64": {"b64": {}}},
    {"url": "http://127.0.0.1/"},
    "data:,",
    "data:;base64,%%",
]
ODD_TEXT = [
    "%00",
    "%ff",
    "%",
    "%zz",
    "%2e%2e%2f",
    "\\",
    "?",
    "#",
    "//",
    ";",
    " ",
    "\t",
    "é",
    "%F0%9F%98%80",
    "{}",
    "'",
    '"',
]


@dataclass(frozen=True)
class Malformed:
    """What is sent, and whether it is surely a whole request, so that an answer is due."""

    data: bytes
    is_whole: bool = True


def request(
    target: str,
    body: bytes,
    headers: Mapping[str, str] | None = None,
    *,
    length: str | None = None,
    method: str = "POST",
) -> bytes:
    """A request that closes its connection. `length`: the header Content-Length, where it is not the body's."""
    lines = [f"{method} {target} HTTP/1.1", "host: test", "connection: close"]
    lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
    lines.append(f"content-length: {len(body) if length is None else length}")
    return "\r\n".join(lines).encode("utf-8", "surrogatepass") + b"\r\n\r\n" + body


def some_json(rng: random.Random) -> tuple[str, bytes]:
    path = rng.choice(list(BODIES))
    return path, json.dumps(BODIES[path]).encode()


def cut(rng: random.Random, data: bytes) -> bytes:
    return data[: rng.randrange(len(data))]


def spoil(rng: random.Random, data: bytes) -> bytes:
    """A few bytes are changed, inserted or left out."""
    spoiled = bytearray(data)
    for _ in range(rng.randint(1, 6)):
        at = rng.randrange(len(spoiled))
        how = rng.randrange(3)
        if how == 0:
            spoiled[at] = rng.randrange(256)
        elif how == 1:
            spoiled.insert(at, rng.randrange(256))
        elif len(spoiled) > 1:
            del spoiled[at]
    return bytes(spoiled)


def request_line(rng: random.Random) -> Malformed:
    method = rng.choice(["GET", "POST", "get", "G T", "", "\0", "TRACE", "CONNECT", "PRI", "X" * 5000, "é"])
    target = rng.choice([*GETS, "*", "", "http://other/v1/models", "a:80", "/" + "a" * 100_000, "/\0", "/é", "/ /"])
    version = rng.choice(
        ["HTTP/1.1", "HTTP/1.0", "HTTP/0.9", "HTTP/2.0", "HTTP/9.9", "http/1.1", "", "HTTP/1.1 x", "1.1"]
    )
    end = rng.choice(["\r\n", "\n", "\r", "\r\n\r\n"])
    head = f"{method} {target} {version}{end}host: a{end}connection: close{end}{end}".encode()
    return Malformed(
        rng.choice([head, spoil(rng, head), rng.randbytes(rng.randint(1, 300)), b"\r\n" * 9 + head]), False
    )


def target(rng: random.Random) -> Malformed:
    """Paths and queries."""
    path = rng.choice([*GETS, *BODIES, "/v2/models/", "/page/", "/page/..%2f..%2fapp.py", "/nowhere"])
    path += "".join(rng.choices(ODD_TEXT, k=rng.randint(0, 3)))
    names = ("task", "model", "source", "logits", "fps", "max_frames", "sampling", "timeline", "x")
    values = ("", "all", "1e999", "nan", "-1", "9" * 400, "%00", "%ff", "true", "[]", "%ED%A0%80", "a,b,,c")
    pairs = [f"{rng.choice(names)}={rng.choice(values)}" for _ in range(rng.randint(0, 4))]
    name = path.partition("?")[0]
    whole = request(f"{path}?{'&'.join(pairs)}", PNG, method="POST" if name in BODIES else rng.choice(["GET", "PUT"]))
    return Malformed(whole, False)


def headers(rng: random.Random) -> Malformed:
    path, body = some_json(rng)
    odd = {
        "content-type": rng.choice(
            [
                "",
                ";",
                "image/",
                "image/png;;;",
                "multipart/form-data",
                "multipart/form-data; boundary=",
                "é",
                "a" * 9000,
                "application/json; charset=utf-16",
                "application/json\0",
                "text/plain",
                'multipart/form-data; boundary="a',
            ]
        ),
        "accept": rng.choice(["", "*/*;q=x", "application/x-ndjson", ";;;", "é" * 100]),
        "accept-encoding": rng.choice(["gzip;q=x", "gzip;q=0", ",,,", "deflate", "é", "gzip" * 500]),
        "content-encoding": rng.choice(["gzip, gzip", "br", "é", "identity", "GZIP"]),
        "authorization": rng.choice(["Bearer", "Bearer  ", "Basic é", "\x01", "Bearer " + "k" * 9000]),
        "x-request-id": rng.choice(["é", "a" * 5000, "\t", "\x7f", "a b"]),
        "x-request-timeout": rng.choice(["nan", "-1", "1e999", "é", "1_0", ""]),
        "inference-header-content-length": rng.choice(["0", "-1", "99999999", "1", "é", "1e3", "٣"]),
        "transfer-encoding": rng.choice(["chunked", "gzip, chunked", "x", "chunked, chunked", "identity"]),
        "expect": rng.choice(["100-continue", "200-ok", ""]),
        "connection": rng.choice(["upgrade", "keep-alive", "close, x"]),
        "upgrade": rng.choice(["websocket", "h2c", "é"]),
        "host": rng.choice(["", "a b", "[::1", "é"]),
        "x" * rng.choice([1, 5000]): "y" * rng.choice([1, 5000, 500_000]),
        "content-length": rng.choice(["5", "-5", "+5", "5, 5", "0x5", "9" * 30, "", "é", "1e2"]),
        " folded": "line",
        "no\0name": "a",
    }
    chosen = {name: odd[name] for name in rng.sample(list(odd), rng.randint(1, 3))}
    if rng.random() < 0.1:
        chosen |= {f"x-{i}": "y" for i in range(rng.choice([50, 300]))}
    return Malformed(request(path, body, {**JSON_TYPE, **chosen}), False)


def chunks(rng: random.Random) -> Malformed:
    path, body = some_json(rng)
    head = f"POST {path} HTTP/1.1\r\nhost: a\r\nconnection: close\r\ntransfer-encoding: chunked\r\n"
    size = rng.choice(
        ["zz", "-1", "", "FFFFFFFFFFFFFFFFF", "7fffffff", "0x5", "5;" + "e" * 9000, f"{len(body):x} ", "1"]
    )
    good = f"{len(body):x}\r\n".encode() + body + b"\r\n"
    sent = rng.choice(
        [good + cut(rng, good), spoil(rng, good), cut(rng, good), f"{size}\r\n".encode() + body, b"\r\n\r\n"]
    )
    end = rng.choice([b"0\r\n\r\n", b"0\r\n", b"", b"0\r\ntrailer: x\r\n\r\n", b"0\r\n\0\r\n\r\n"])
    return Malformed(head.encode() + b"content-type: application/json\r\n\r\n" + sent + end, False)


def lengths(rng: random.Random) -> Malformed:
    """Bodies that are shorter or longer than they say."""
    path, body = some_json(rng)
    size = rng.choice([len(body) + 1, len(body) * 3, len(body) - 1, 1, 0, 10**9, 10**19])
    data = request(path, body, JSON_TYPE, length=str(size))
    return Malformed(rng.choice([data, data + request("/v1/models", b"", method="GET"), cut(rng, data)]), False)


def multipart(rng: random.Random) -> Malformed:
    path = rng.choice(["/v1/score", "/v1/score/video", "/v1/compare"])
    name = rng.choice(
        ['name="f"; filename="a.png"', 'name="f"; filename="\0"', "name=f; filename*=utf-16''%ff", 'name="task"']
    )
    name = rng.choice(
        [name, 'filename="a.png"', "", 'name="model"', 'name="frames"; filename=""', 'name="é"; filename="é"']
    )
    part = f"--B\r\ncontent-disposition: form-data; {name}\r\ncontent-type: image/png\r\n\r\n".encode() + PNG + b"\r\n"
    body = part * rng.choice([1, 2, 3, 80]) + b"--B--\r\n"
    kind = rng.choice(["B", "B", "B", '"B', "other", "", "B; charset=utf-7", "B; charset=nothing", "B" * 200])
    body = rng.choice(
        [body, cut(rng, body), spoil(rng, body), body.replace(b"\r\n", b"\n"), b"", b"--B--", b"\r\n" * 99]
    )
    return Malformed(request(path, body, {"content-type": f"multipart/form-data; boundary={kind}"}))


def broken_json(rng: random.Random) -> Malformed:
    path, body = some_json(rng)
    deep = rng.choice([90, 400, 900, 990, 1100, 100_000])
    opened, closed = rng.choice([(b"[", b"]"), (b'{"images":', b"}"), (b'{"inputs":[', b"]}"), (b'{"b64":', b"}")])
    odd = [
        cut(rng, body),
        spoil(rng, body),
        opened * deep,
        opened * deep + b'"AAAA"' + closed * deep,
        body.decode().encode(rng.choice(["utf-16", "utf-32", "utf-8-sig"])),
        body.replace(b'"', rng.choice([b"\xff", b"\0", b"\xed\xa0\x80", b"'"]), rng.randint(1, 3)),
        body.replace(PICTURE[:8].encode(), rng.choice([b"\\ud800", b"\\u0000", b"\xff", b"\n", b"data:;base64,"])),
        rng.choice(
            [b"", b"null", b"NaN", b"1e999", b"9" * 5000, b'"\\ud800"', b"{}{}", b"\xef\xbb\xbf", b"[1,]", b"-"]
        ),
    ]
    return Malformed(request(path, rng.choice(odd), JSON_TYPE))


def odd_json(rng: random.Random) -> Malformed:
    """JSON that is well formed, with values that no route expects."""
    path, body = some_json(rng)
    content = json.loads(body)
    for _ in range(rng.randint(1, 3)):
        place = content
        while True:
            key = rng.choice(list(place) if isinstance(place, dict) else range(len(place)))
            if not isinstance(place[key], dict | list) or not place[key] or rng.random() < 0.3:
                break
            place = place[key]
        place[key] = deepcopy(rng.choice(ODD_VALUES))
    if rng.random() < 0.2:
        content[rng.choice(["task", "model", "source", "\ud800", "x"])] = deepcopy(rng.choice(ODD_VALUES))
    return Malformed(request(path, json.dumps(content).encode(), JSON_TYPE))


def packed(rng: random.Random) -> Malformed:
    path, body = some_json(rng)
    bomb = b'{"images": ["' + b"A" * 2_000_000 + b'"]}'
    data = rng.choice([gzip.compress(body), zlib.compress(body), zlib.compress(body)[2:-4], gzip.compress(bomb)])
    data = rng.choice([data, cut(rng, data), spoil(rng, data), data + data, b"", body, data + b"more"])
    encoding = rng.choice(["gzip", "deflate", "x-gzip", "gzip", "deflate", "br", "gzip, deflate", ""])
    return Malformed(request(path, data, {**JSON_TYPE, "content-encoding": encoding}))


def binary_extension(rng: random.Random) -> Malformed:
    """Each of the parts is right more often than not."""
    good = len(PNG).to_bytes(4, "little") + PNG
    data = rng.choice([*[good] * 6, b"\xff\xff\xff\xff", b"\0\0", b"\0" * 40, rng.randbytes(50), cut(rng, good), b""])
    size = rng.choice([*[len(data)] * 9, len(data) + 1, len(data) - 1, -1, 2**63, 0, "8", None, 1.5, True])
    shape = rng.choice([*[[1]] * 6, [0], [2], [2**31 - 1], [1, 1], [], [-1]])
    tensor = {"name": "image", "shape": shape, "datatype": "BYTES", "parameters": {"binary_data_size": size}}
    outputs = rng.choice([{}, {"outputs": [{"name": "score", "parameters": {"binary_data": True}}]}, {"outputs": None}])
    text = json.dumps({"inputs": [tensor] * rng.choice([1, 1, 1, 2]), **outputs}).encode()
    length = rng.choice([*[len(text)] * 9, len(text) + 1, len(text) - 1, 0, 10**9, "-1", "x", ""])
    return Malformed(request(INFER, text + data, {"inference-header-content-length": str(length)}))


def picture(rng: random.Random) -> Malformed:
    """Files that are no pictures, and some that say that they are huge."""
    huge = bytearray(PNG)
    huge[16:24] = rng.choice([b"\x7f\xff\xff\xff" * 2, b"\0\0\xff\xff" * 2, b"\0\0\0\0" * 2])
    body = rng.choice(
        [cut(rng, PNG), spoil(rng, PNG), bytes(huge), b"", rng.randbytes(200), b"GIF89a" + rng.randbytes(40)]
    )
    path = rng.choice(["/v1/score", "/v1/score/video"])
    kind = rng.choice(["image/png", "application/octet-stream", "image/x", "video/mp4"])
    return Malformed(request(path, body, {"content-type": kind}))


KINDS: tuple[Callable[[random.Random], Malformed], ...] = (
    request_line,
    target,
    headers,
    chunks,
    lengths,
    multipart,
    broken_json,
    odd_json,
    packed,
    binary_extension,
    picture,
)


def draw(seed: int) -> Malformed:
    """The request of a number: the kinds in turn."""
    return KINDS[seed % len(KINDS)](random.Random(seed))
