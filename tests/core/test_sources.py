"""What a user names becomes sources: lists, patterns and odd names."""

from __future__ import annotations

import errno
import io
import os
from collections.abc import Iterator
from pathlib import Path
from threading import Timer

import pytest

from qalign_fast.errors import ImageError
from qalign_fast.feed.items import ClipOptions, Item
from qalign_fast.sources import Refused, Source, find_sources, to_items
from support.sources import fill, find, told

# a line feed in one of its bytes, in little or big endian; and "\n" across two letters
LINE_FEEDS = ["上.jpg", "Ċ.jpg", "\u0a41\u0100.jpg", "\u0100\u0a41.jpg"]
ODD = ["two\nlines.jpg", "a\r", "a.jpg ", " .jpg", "-o.jpg", "😀.jpg", "latin\udce9.jpg", "\udcff", "[1].jpg", "{b}"]


def listed(stdin: bytes, **options) -> list[Source]:
    return find("-", stdin=stdin, **options)


# lists


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", []),
        (b"\n", []),
        (b"a", ["a"]),
        (b"a\n", ["a"]),
        (b"a.jpg\nb.jpg", ["a.jpg", "b.jpg"]),  # without a last line feed
        (b"a.jpg\r\nb.jpg\r\n", ["a.jpg", "b.jpg"]),
        (b"\n\na.jpg\n \n\t\r\n\r\nb.jpg\n\n", ["a.jpg", "b.jpg"]),
        (b" a.jpg \n-\n-o.jpg\n#b.jpg\n*.jpg\n", [" a.jpg ", "-", "-o.jpg", "#b.jpg", "*.jpg"]),  # as they are
        (b"latin\xe9.jpg\n\xff\n\xf0\x9f\x98\x80.jpg\n", ["latin\udce9.jpg", "\udcff", "😀.jpg"]),
        (b"a\0b\n" + b"a" * 300, ["a\0b", "a" * 300]),
    ],
)
def test_a_list_is_a_name_a_line(data: bytes, expected: list[str]) -> None:
    assert listed(data) == expected


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", []),
        (b"\0", []),
        (b"a\0", ["a"]),
        (b"a.jpg\0\0b.jpg", ["a.jpg", "b.jpg"]),
        (b" \0two\nlines.jpg\0\n\0a\r\0-\0", [" ", "two\nlines.jpg", "\n", "a\r", "-"]),
        (b"\xef\xbb\xbfa\0", ["\ufeffa"]),
        (b"\xff\xfea\0b\0", ["\udcff\udcfea", "b"]),
        (b"latin\xe9.jpg\0", ["latin\udce9.jpg"]),
    ],
)
def test_a_name_before_a_null_byte_is_verbatim(data: bytes, expected: list[str]) -> None:
    assert listed(data, null=True) == expected


@pytest.mark.parametrize("codec", ["utf-8-sig", "utf-16-le", "utf-16-be"])
def test_a_byte_order_mark_tells_the_encoding_and_is_no_name(codec: str) -> None:
    mark = "" if codec == "utf-8-sig" else "\ufeff"
    expected = ["a.jpg", "\ufeffb.jpg", "é 😀.jpg", *LINE_FEEDS]
    for end in ("\n", "\r\n"):
        assert listed((mark + end.join(expected)).encode(codec)) == expected
        assert listed((mark + end + end.join(["", *expected, ""])).encode(codec)) == expected
    assert listed(mark.encode(codec)) == []


def test_what_looks_like_half_a_mark_is_a_name() -> None:
    assert listed(b"\xef\xbb\n\xff") == ["\udcef\udcbb", "\udcff"]
    assert listed(b"\xef\xbb") == ["\udcef\udcbb"]
    assert listed(b"\xff") == ["\udcff"]
    assert listed(b"\xfe\nb") == ["\udcfe", "b"]


def test_a_list_in_utf_16_that_breaks_off_keeps_what_came() -> None:
    data = "\ufeffa.jpg\nb.jpg".encode("utf-16-le")
    assert listed(data[:-1]) == ["a.jpg", "b.jp\ufffd"]
    assert listed(data[:3]) == ["\ufffd"]
    assert listed("\ufeffa\n😀".encode("utf-16-be")[:-2]) == ["a", "\ufffd"]


@pytest.mark.parametrize(
    ("codec", "end"),
    [("utf-8", "\n"), ("utf-8-sig", "\n"), ("utf-16-le", "\n"), ("utf-16-be", "\n"), ("utf-8", "\0")],
)
def test_a_name_is_given_out_before_the_next_is_there(codec: str, end: str) -> None:
    """Whoever asks for a byte too many waits until the pipe is closed, and then the next write fails."""
    out, into = os.pipe()
    with os.fdopen(out, "rb") as stdin, os.fdopen(into, "wb", buffering=0) as pipe:
        guard = Timer(30, pipe.close)
        guard.start()
        sources = find_sources(["-", "last.jpg"], stdin, null=end == "\0")
        pipe.write(("\ufeff" * codec.startswith("utf-16") + f"a{end}").encode(codec))
        assert next(sources) == "a"
        for name in ("b", "上.jpg"):
            pipe.write((name + end).encode(codec.removesuffix("-sig")))
            assert next(sources) == name
        guard.cancel()
        pipe.close()
        assert list(sources) == ["last.jpg"]


def test_stdin_is_read_once_however_often_it_is_named() -> None:
    assert find("x.jpg", "-", "y.jpg", "-", stdin=b"a.jpg\nb.jpg") == ["x.jpg", "a.jpg", "b.jpg", "y.jpg"]
    assert find("-", "-", stdin=b"a\0", null=True) == ["a"]
    assert find("-", "-", stdin="\ufeffa\n".encode("utf-16-le")) == ["a"]


@pytest.mark.parametrize("null", [False, True])
def test_a_list_that_cannot_be_read_on_is_told_and_the_rest_goes_on(null: bool) -> None:
    class Broken(io.BytesIO):
        def read1(self, size: int | None = -1, /) -> bytes:
            if data := super().read1(size):
                return data
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    for data, expected in ((b"", []), (b"a\0" if null else b"a\n", ["a"])):
        found = told(list(find_sources(["-", "b.jpg"], Broken(data), null=null)))
        assert found == [*expected, ("-", "-: Input/output error"), "b.jpg"]


# patterns


def test_a_pattern_is_its_matches_in_order(here: Path) -> None:
    fill(here, "b.jpg", "a.jpg", "B.jpg", "c.txt", ".d.jpg", "e/f.jpg")
    assert find("*.jpg") == ["B.jpg", "a.jpg", "b.jpg"]
    assert find("./[ab].jpg") == ["./a.jpg", "./b.jpg"]
    assert find("?.txt", f"{here}/*/*.jpg") == ["c.txt", f"{here}/e/f.jpg"]  # a match is taken, whatever its suffix
    assert find("**/*.jpg") == ["B.jpg", "a.jpg", "b.jpg", "e/f.jpg"]


def test_a_match_that_is_a_folder_is_listed(here: Path) -> None:
    fill(here, "2024-a/1.jpg", "2024-a/b/2.jpg", "2024-b/3.png", "2024-b/c.txt", "2024.jpg", "2025/4.jpg")
    assert find("2024*") == ["2024-a/1.jpg", "2024-b/3.png", "2024.jpg"]
    assert find("2024*", recursive=True) == ["2024-a/1.jpg", "2024-a/b/2.jpg", "2024-b/3.png", "2024.jpg"]
    assert find("*/") == ["2024-a/1.jpg", "2024-b/3.png", "2025/4.jpg"]


def test_what_a_pattern_matches_twice_counts_once(here: Path) -> None:
    fill(here, "a/1.jpg", "a/b/2.jpg", "a/b/3.txt")
    for recursive in (False, True):
        assert find("a/**", recursive=recursive) == ["a/1.jpg", "a/b/2.jpg", "a/b/3.txt"]
        assert find("./a/**", recursive=recursive)[:2] == ["a/1.jpg", "a/b/2.jpg"]
        assert find("**/*.jpg", "a/*.jpg", recursive=recursive) == ["a/1.jpg", "a/b/2.jpg", "a/1.jpg"]


@pytest.mark.parametrize("pattern", ["*.bmp", "no/such/*", "[ab].jpg", "a?", "[", "[]", "**/x", "[a]" * 100])
def test_a_pattern_that_matches_nothing_is_itself(here: Path, pattern: str) -> None:
    fill(here, "c.jpg")
    assert find(pattern, "c.jpg") == [pattern, "c.jpg"]


def test_a_name_that_looks_like_a_pattern_and_exists_is_itself(here: Path) -> None:
    fill(here, "a[1].jpg", "a1.jpg", "b*", "b1", "[c]/1.jpg", "c/2.jpg")
    Path("[d].jpg").symlink_to("nowhere")
    fill(here, "d.jpg")
    assert find("a[1].jpg", "b*", "[c]", "[d].jpg") == ["a[1].jpg", "b*", "[c]/1.jpg", "[d].jpg"]


# names


@pytest.mark.parametrize(
    "name", ["a" * 300, "a\0b", "a\0b.mp4", "a\0/*.jpg", "*\0", "\ud800.jpg", "\ud800/*.jpg", "a/" * 3000, "", "[\0]"]
)
def test_a_name_that_the_system_refuses_is_itself(here: Path, name: str) -> None:
    fill(here, "b.jpg")
    assert find("b.jpg", name, "b.jpg", recursive=True) == ["b.jpg", name, "b.jpg"]


@pytest.mark.parametrize("name", ODD)
def test_an_odd_name_comes_out_as_it_is(here: Path, name: str) -> None:
    fill(here, name, f"{name}.d/{name}.png")
    assert find(name) == listed(os.fsencode(name), null=True) == [name]
    assert f"{name}.d/{name}.png" in find(".", recursive=True)
    if not name.startswith("["):
        assert find(f"{name}*/*") == [f"{name}.d/{name}.png"]
    if "\n" not in name and "\r" not in name:
        assert listed(os.fsencode(name)) == [name]


# items


def test_an_item_is_a_picture_or_by_its_suffix_a_clip() -> None:
    options = ClipOptions(2, 8, "time")
    sources = ["a.jpg", "b.MP4", "c.d/e", "clip.ts", "x.mp4.png", "new.y4m", ".mov", "latin\udce9.3g2", "a\0b.qt"]
    media = ["image", "video", "image", "video", "image", "video", "image", "video", "video"]
    expected = [Item(source, source, medium, options) for source, medium in zip(sources, media)]
    assert list(to_items(sources, options)) == expected


def test_a_refused_source_is_an_item_that_holds_its_error() -> None:
    error = ImageError("closed: Permission denied")
    options = ClipOptions(2)
    assert list(to_items(["a.jpg", Refused("closed", error)], options)) == [
        Item("a.jpg", "a.jpg", "image", options),
        Item("closed", error, "image", options),
    ]


def test_items_are_made_one_by_one() -> None:
    def sources() -> Iterator[str]:
        yield "a.jpg"
        raise AssertionError("the second was asked for")

    assert next(to_items(sources(), ClipOptions())).key == "a.jpg"
