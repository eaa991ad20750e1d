"""What a folder gives: by suffix, in order, through links; what is left out, and what cannot be listed."""

from __future__ import annotations

import errno
import inspect
import io
import os
import random
import socket
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from qalign_fast.pixels.limits import MORE_FORMATS
from qalign_fast.sources import MORE_SUFFIXES, find_sources, is_video
from support.sources import fill, find, names, told


def test_a_folder_is_the_pictures_and_clips_in_it_by_suffix(tmp_path: Path) -> None:
    pictures = "jpg jpeg jpe jfif jif png apng webp gif tif tiff bmp dib ppm pgm pbm avif mpo".split()
    clips = (
        "mp4 m4v mov mkv webm avi mpg mpeg m2v vob mts m2ts wmv asf flv f4v 3gp 3g2 ogv mxf qt y4m".split()
    )  # and ts: see below
    taken = [f"{i}.{s}" for s in pictures + clips for i, s in enumerate((s, s.upper(), s.title()))]
    fill(tmp_path, *taken, "a.b.jpg", "a..png", "a b.Gif", "a.txt.mp4")
    skipped = Counter[str]()
    fill(tmp_path, "a.HEIC", "b.heic", "c.heif", "d.hif", "e.jxl", "jpg", "README", "dot.", "a.jpg.txt", "a.jpg~")
    found = names(tmp_path, skipped=lambda kind: skipped.update([kind]))
    assert found == sorted([*taken, "a.b.jpg", "a..png", "a b.Gif", "a.txt.mp4"])
    expected = {".heic": 2, ".heif": 1, ".hif": 1, ".jxl": 1, "without a suffix": 3, ".txt": 1, ".jpg~": 1}
    assert skipped == expected
    assert [path for path in found if is_video(path)] == [p for p in found if p.rpartition(".")[2].lower() in clips]


@pytest.mark.parametrize(
    ("formats", "expected"),
    [
        ([], []),
        (["heic"], ["a.heic", "b.HEIF", "c.hif"]),
        (["jxl"], ["d.JXL"]),
        (iter(["jxl", "heic"]), ["a.heic", "b.HEIF", "c.hif", "d.JXL"]),
    ],
)
def test_a_format_that_is_asked_for_is_taken_from_folders(tmp_path: Path, formats, expected: list[str]) -> None:
    fill(tmp_path, "a.heic", "b.HEIF", "c.hif", "d.JXL", "e.svg")
    assert names(tmp_path, formats=formats) == expected


def test_formats_have_the_names_that_the_reader_of_pictures_knows() -> None:
    assert sorted(MORE_SUFFIXES) == sorted(MORE_FORMATS)


def test_a_ts_file_is_a_clip_if_it_begins_as_a_stream(tmp_path: Path) -> None:
    fill(tmp_path, "clip.ts", "CLIP.TS", content=b"\x47\x40\0\x10")
    fill(tmp_path, "index.ts", "types.d.ts", "MAIN.TS", content=b"export const x = 1;\n")
    fill(tmp_path, "bom.ts", content=b"\xef\xbb\xbfG")
    fill(tmp_path, "a.mts", "b.m2ts", content=b"\0\0\0\0\x47")  # four bytes of time come first
    fill(tmp_path, "empty.ts")
    (tmp_path / "gone.ts").symlink_to("nowhere")  # cannot be read: its row says why
    (tmp_path / "loop.ts").symlink_to("loop.ts")
    skipped: list[str] = []
    expected = ["CLIP.TS", "a.mts", "b.m2ts", "clip.ts", "gone.ts", "loop.ts"]
    assert names(tmp_path, skipped=skipped.append) == expected
    assert skipped == [".ts"] * 5
    assert find(tmp_path / "index.ts", stdin=b"index.ts") == [f"{tmp_path}/index.ts"]  # named: taken
    assert find("-", stdin=b"index.ts") == ["index.ts"]


def test_hidden_files_and_folders_are_left_out_of_folders(tmp_path: Path) -> None:
    fill(tmp_path, "a.jpg", "f/b.jpg")
    fill(tmp_path, "._a.jpg", ".c.mp4", "..d.png", ".directory", ".e/f.jpg", "f/.g.jpg", "f/.h/i.jpg")
    skipped: list[str] = []
    assert names(tmp_path, recursive=True, skipped=skipped.append) == ["a.jpg", "f/b.jpg"]
    assert skipped == ["hidden"] * 7


def test_what_is_hidden_and_named_is_taken(here: Path) -> None:
    fill(here, ".a.jpg", ".b/c.jpg", ".b/.d.jpg", ".b/.e/f.jpg")
    assert find(".a.jpg", ".b", ".b/.e", ".a*", ".b/.e/*.jpg", "*.jpg") == [
        ".a.jpg",
        ".b/c.jpg",
        ".b/.e/f.jpg",
        ".a.jpg",
        ".b/.e/f.jpg",
        "*.jpg",
    ]


def test_folders_below_are_entered_where_asked_for_and_told_where_not(tmp_path: Path) -> None:
    fill(tmp_path, "a.jpg", "b/c.jpg", "b.jpg/d.jpg", "e/f/g.txt", "e/f/h/i.mov")
    (tmp_path / "empty").mkdir()
    skipped: list[str] = []
    assert names(tmp_path, skipped=skipped.append) == ["a.jpg"]
    assert skipped == ["folder"] * 4
    skipped.clear()
    assert names(tmp_path, recursive=True, skipped=skipped.append) == ["a.jpg", "b.jpg/d.jpg", "b/c.jpg", "e/f/h/i.mov"]
    assert skipped == [".txt"]
    assert find(tmp_path / "empty", recursive=True) == []


def test_what_is_no_regular_file_is_left_out_of_folders(here: Path) -> None:
    fill(here, "a.jpg")
    os.mkfifo("pipe.jpg")
    Path("link.jpg").symlink_to("pipe.jpg")
    Path("null.mp4").symlink_to(os.devnull)
    skipped: list[str] = []
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind("socket.png")
        assert find(".", skipped=skipped.append) == ["a.jpg"]
        assert skipped == ["not a regular file"] * 4
        assert find("pipe.jpg", "socket.png", "null.mp4") == ["pipe.jpg", "socket.png", "null.mp4"]  # named: itself


# order, and what is held


def random_tree(folder: Path, draw: random.Random) -> None:
    """Names begin alike, and go on with what sorts before and after the separator."""
    for _ in range(60):
        parts = ["".join(draw.choices("ab-+. 0é\udce9", k=draw.randint(1, 3))) for _ in range(draw.randint(1, 4))]
        path = folder.joinpath(*("a" + part.replace(".", "!") for part in parts[:-1]), f"a{parts[-1]}.jpg")
        try:
            fill(path.parent, path.name)
        except (FileExistsError, IsADirectoryError, NotADirectoryError):  # a file and a folder of one name
            continue


@pytest.mark.parametrize("seed", range(5))
def test_the_order_is_that_of_the_sorted_paths(here: Path, seed: int) -> None:
    random_tree(here / "tree", random.Random(seed))
    files = [f"{folder}/{name}" for folder, _, found in os.walk("tree") for name in found]
    assert len(files) > 30
    assert find("tree", recursive=True) == sorted(files)
    assert find(here / "tree", recursive=True) == sorted(f"{here}/{file}" for file in files)
    assert find("tree") == sorted(file for file in files if file.count("/") == 1)


@pytest.mark.parametrize("root", [".", "./", "b", "b/", "./b", "b//", "./b/."])
def test_a_folders_path_is_written_in_one_way(here: Path, root: str) -> None:
    fill(here, "a.jpg", "b/a.jpg", "b/b/a.jpg")
    expected = ["b/a.jpg", "b/b/a.jpg"]
    assert find(root, recursive=True) == (expected if "b" in root else ["a.jpg", *expected])


def test_a_folder_is_read_when_its_turn_comes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path, "a/1.jpg", "a/2.jpg", "b/1.jpg", "c.jpg", "d/1.jpg")
    read: list[str] = []
    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: (read.append(Path(path).name), scandir(path))[1])
    sources = find_sources([str(tmp_path), str(tmp_path / "d")], io.BytesIO(), recursive=True)
    seen = [(os.path.relpath(str(source), tmp_path), list(read)) for source in sources]
    top = tmp_path.name
    assert seen == [
        ("a/1.jpg", [top, "a"]),
        ("a/2.jpg", [top, "a"]),
        ("b/1.jpg", [top, "a", "b"]),
        ("c.jpg", [top, "a", "b"]),
        ("d/1.jpg", [top, "a", "b", "d"]),
        ("d/1.jpg", [top, "a", "b", "d", "d"]),
    ]


def test_folders_may_lie_deeper_than_python_calls(tmp_path: Path) -> None:
    deepest = tmp_path.joinpath(*["d"] * 200)
    fill(deepest, "a.jpg")
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(len(inspect.stack()) + 100)
    try:
        assert find(tmp_path, recursive=True) == [str(deepest / "a.jpg")]
    finally:
        sys.setrecursionlimit(limit)


# links


def test_a_folder_is_entered_once_and_loops_end(tmp_path: Path) -> None:
    fill(tmp_path, "a/1.jpg", "a/b/2.jpg", "c/3.jpg")
    (tmp_path / "a/b/up").symlink_to(tmp_path)
    (tmp_path / "a/b/here").symlink_to(".")
    (tmp_path / "a/around").symlink_to("../d")
    (tmp_path / "d").symlink_to("a")
    expected = ["a/1.jpg", "a/b/2.jpg", "c/3.jpg"]
    assert names(tmp_path, recursive=True) == expected
    assert find(tmp_path, tmp_path, recursive=True) == [f"{tmp_path}/{name}" for name in expected] * 2


def test_links_to_folders_and_files_are_followed(tmp_path: Path) -> None:
    fill(tmp_path, "far/1.jpg", "far/deeper/2.png", "folder/3.jpg", "far/noext")
    folder = tmp_path / "folder"
    (folder / "link").symlink_to("../far")
    (folder / "again").symlink_to(tmp_path / "far")  # the same, and sorts first
    (folder / "4.jpg").symlink_to("3.jpg")
    (folder / "5.jpg").symlink_to("../far/noext")
    skipped: list[str] = []
    assert names(folder, skipped=skipped.append) == ["3.jpg", "4.jpg", "5.jpg"]
    assert skipped == ["folder"] * 2
    assert names(folder, recursive=True) == ["3.jpg", "4.jpg", "5.jpg", "again/1.jpg", "again/deeper/2.png"]
    assert find(folder / "link") == [f"{folder}/link/1.jpg"]


def test_a_broken_link_with_a_suffix_of_ours_is_taken(tmp_path: Path) -> None:
    """As a missing file is that the user names: its row says that it is not there."""
    fill(tmp_path, "file")
    for name, to in {
        "gone.jpg": "nowhere",
        "loop.png": "loop.png",
        "through.mp4": "file/x",
        "gone": "nowhere",
        "gone.txt": "nowhere",
        ".#a.jpg": "me@machine",  # Emacs's lock
    }.items():
        (tmp_path / name).symlink_to(to)
    skipped = Counter[str]()
    assert names(tmp_path, recursive=True, skipped=lambda k: skipped.update([k])) == [
        "gone.jpg",
        "loop.png",
        "through.mp4",
    ]
    assert skipped == {"without a suffix": 2, ".txt": 1, "hidden": 1}


# folders that cannot be listed


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (errno.EACCES, "Permission denied"),
        (errno.ENOENT, "No such file or directory"),  # it vanished
        (errno.ENOTDIR, "Not a directory"),
        (errno.ESTALE, "Stale file handle"),
    ],
)
@pytest.mark.parametrize("function", ["scandir", "stat"])
def test_a_folder_that_cannot_be_listed_is_told_and_the_rest_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, said: str, function: str
) -> None:
    fill(tmp_path, "a.jpg", "closed/b.jpg", "c.jpg", "d/closed/e.jpg", "d/f.jpg")
    works, is_folder = getattr(os, function), os.path.isdir

    def refuse(path, *rest, **options):
        if Path(path).name == "closed":
            raise OSError(number, os.strerror(number), path)
        return works(path, *rest, **options)

    monkeypatch.setattr(os, function, refuse)
    # it was there a moment ago
    monkeypatch.setattr(os.path, "isdir", lambda path: Path(path).name == "closed" or is_folder(path))
    top = str(tmp_path)
    closed, below = ((f"{top}/{name}", f"{top}/{name}: {said}") for name in ("closed", "d/closed"))
    assert told(find(top, recursive=True)) == [f"{top}/a.jpg", f"{top}/c.jpg", closed, below, f"{top}/d/f.jpg"]
    assert told(find(f"{top}/closed/", f"{top}/c.jpg")) == [closed, f"{top}/c.jpg"]
    assert told(find(f"{top}/d/clos*", f"{top}/c.jpg")) == [below, f"{top}/c.jpg"]


def test_a_folder_that_breaks_off_gives_what_was_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path, "a/1.jpg", "a/2.jpg", "a/3.jpg", "b.jpg")
    scandir = os.scandir

    @contextmanager
    def breaking(path: str) -> Iterator[Iterator[os.DirEntry[str]]]:
        def some() -> Iterator[os.DirEntry[str]]:
            yield from sorted(entries, key=lambda entry: entry.name)[:2]
            if Path(path).name == "a":
                raise OSError(errno.EIO, os.strerror(errno.EIO), path)

        with scandir(path) as entries:
            yield some()

    monkeypatch.setattr(os, "scandir", breaking)
    found = told(find(tmp_path, recursive=True))
    top = f"{tmp_path}/"
    assert found == [(f"{top}a", f"{top}a: Input/output error"), f"{top}a/1.jpg", f"{top}a/2.jpg", f"{top}b.jpg"]


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that everyone may enter: pytest's own is its user's alone."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


@contextmanager
def as_nobody() -> Iterator[None]:
    """Rights do not hold root."""
    if root := os.geteuid() == 0:
        try:
            os.seteuid(65534)
        except OSError:
            pytest.skip("this container has no other user")
    try:
        yield
    finally:
        if root:
            os.seteuid(0)


def test_a_folder_without_rights_is_told_and_the_rest_goes_on(open_folder: Path) -> None:
    fill(open_folder, "a.jpg", "b/c.jpg", "d/e/f.jpg", "g.jpg", "h.ts", "i/j.jpg", "i/k/l.jpg", content=b"no stream")
    (open_folder / "in").symlink_to("b/c.jpg")
    (open_folder / "in.png").symlink_to("b/c.jpg")
    closed, listable = [open_folder / "b", open_folder / "d/e"], open_folder / "i"
    for path in (*closed, open_folder / "h.ts"):
        path.chmod(0)
    listable.chmod(0o444)  # its names can be read, and nothing more
    top = str(open_folder)
    try:
        with as_nobody():
            found = told(find(open_folder, recursive=True))
            named = told(find(closed[0], closed[0] / "c.jpg", f"{closed[0]}/*.jpg", f"{top}/[bg]*"))
    finally:
        for path in (*closed, listable):
            path.chmod(0o755)
    first, second, third = ((str(path), f"{path}: Permission denied") for path in (*closed, listable / "k"))
    taken = [f"{top}/{name}" for name in ("g.jpg", "h.ts", "i/j.jpg")]
    assert found == [f"{top}/a.jpg", first, second, *taken, third, f"{top}/in.png"]
    assert named == [first, f"{top}/b/c.jpg", f"{top}/b/*.jpg", first, f"{top}/g.jpg"]
