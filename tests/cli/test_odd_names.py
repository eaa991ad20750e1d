"""Names, streams and outputs as the command line meets them: bytes that are no UTF-8, full disks, files that exist."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from support.clips import constant, write_clip
from support.command_line import CLI
from support.goldens import PICTURES, Golden

LOCALES = {
    "strict UTF-8": {"LC_ALL": "C.UTF-8", "PYTHONIOENCODING": "utf-8:strict"},
    "cp1252": {"LC_ALL": "C.UTF-8", "PYTHONIOENCODING": "cp1252:strict"},
    "C": {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
}
NAMES = [
    b"latin\xe9.jpg",  # as old archives unpack
    "写真 é.jpg".encode(),
    "\N{PILE OF POO}.jpg".encode(),
    b"two\nlines.jpg",
    b"escape\x1b[31m.jpg",
    b"-dash.jpg",
    b" space .jpg",
    b"shift\x8fjis.jpg",
]
PICTURE = PICTURES / "rocket_landscape.jpg"


def run(*arguments: object, locale: str = "strict UTF-8", stdin: bytes = b"") -> tuple[int, bytes, str]:
    """Exit code, stdout and stderr of `score`. Arguments may be bytes."""
    done = subprocess.run(
        [*CLI, "score", *(a if isinstance(a, bytes) else str(a) for a in arguments)],
        input=stdin,
        capture_output=True,
        timeout=120,
        check=False,
        env=os.environ | LOCALES[locale],
    )
    assert b"Traceback" not in done.stderr, done.stderr.decode(errors="replace")
    return done.returncode, done.stdout, remarks(done.stderr.decode("ascii", "backslashreplace"))


def remarks(stderr: str) -> str:
    """Without the one that says how to compile the kernels, which tests do without."""
    return "".join(line for line in stderr.splitlines(keepends=True) if not line.startswith("ran in plain "))


@pytest.fixture(scope="module")
def names(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    folder = os.fsencode(tmp_path_factory.mktemp("names"))
    paths = [os.path.join(folder, name) for name in NAMES]  # noqa: PTH118 (bytes)
    for path in paths:
        shutil.copy(os.fsencode(PICTURE), path)
    return paths


@pytest.mark.parametrize("locale", LOCALES)
@pytest.mark.parametrize("way", ["stdout", "file"])
def test_json_lines_give_every_name_back(names: list[bytes], locale: str, way: str, tmp_path: Path) -> None:
    missing = b"missing\xff.jpg"
    out = ["-o", tmp_path / "out"] if way == "file" else []
    code, stdout, said = run(*names, missing, b"x" * 300 + b".jpg", *out, locale=locale)
    written = (tmp_path / "out").read_bytes() if way == "file" else stdout
    found = [json.loads(line) for line in written.decode("ascii").splitlines()]
    assert [os.fsencode(row["source"]) for row in found[:-1]] == [*names, missing]
    assert [row["error"] is None for row in found] == [True] * len(names) + [False] * 2
    assert code == 3
    assert said.startswith(f"{len(found)} rows in ") and said.count("\n") == 1


@pytest.mark.parametrize("locale", LOCALES)
@pytest.mark.parametrize("way", ["stdout", "file"])
def test_csv_has_the_bytes_of_every_name(names: list[bytes], locale: str, way: str, tmp_path: Path) -> None:
    out = tmp_path / "rows.csv"
    code, stdout, _ = run(*names, *(["-o", out] if way == "file" else ["--format", "csv"]), locale=locale)
    assert code == 0
    text = (out.read_bytes() if way == "file" else stdout).decode("utf-8", "surrogateescape")
    assert [os.fsencode(row["source"]) for row in csv.DictReader(io.StringIO(text, newline=""))] == names


@pytest.mark.parametrize("locale", LOCALES)
def test_a_table_shows_every_name_and_obeys_none(names: list[bytes], locale: str) -> None:
    code, stdout, _ = run(*names, b"missing\xff.jpg", "--format", "table", locale=locale)
    assert code == 3
    for shown in (b"latin\\udce9.jpg", b"two\\nlines.jpg", b"escape\\x1b[31m.jpg", b"missing\\udcff.jpg"):
        assert shown in stdout
    assert b"\x1b" not in stdout


@pytest.mark.parametrize("locale", LOCALES)
def test_names_on_stdin_are_bytes(names: list[bytes], locale: str) -> None:
    one_line = [name for name in names if b"\n" not in name]
    for given, options, expected in (
        (b"\xef\xbb\xbf" + b"\r\n".join(one_line), [], one_line),  # as a Windows editor saves a list
        (b"\0".join(names) + b"\0", ["-0"], names),
    ):
        code, stdout, _ = run("-", *options, locale=locale, stdin=given)
        assert code == 0
        assert [os.fsencode(json.loads(line)["source"]) for line in stdout.splitlines()] == expected


def test_an_error_of_ours_about_such_a_name_is_one_line(names: list[bytes]) -> None:
    code, _, said = run(names[0], "--model", b"no\xe9model")
    assert (code, said.count("\n")) == (1, 1)
    assert "no\\udce9model" in said


def test_the_format_follows_the_suffix(tmp_path: Path) -> None:
    for name, begin in (("a.csv", b"source,"), ("a.CSV", b"source,"), ("a.jsonl", b"{"), ("a", b"{"), ("a.txt", b" ")):
        assert run(PICTURE, "-o", tmp_path / name)[0] == 0
        assert (tmp_path / name).read_bytes().startswith(begin)
    assert run(PICTURE, "-o", tmp_path / "b.csv", "--format", "jsonl")[0] == 0
    assert (tmp_path / "b.csv").read_bytes().startswith(b"{")


def test_an_output_that_is_there_is_kept_unless_asked(tmp_path: Path) -> None:
    out = tmp_path / "rows.jsonl"
    out.write_text("mine\n")
    code, _, said = run(PICTURE, "-o", out)
    assert (code, out.read_text()) == (1, "mine\n")
    assert "is there already; --overwrite replaces it, --append adds to it" in said
    assert run(PICTURE, "-o", out, "--append")[0] == 0
    kept, added = out.read_text().splitlines()
    assert (kept, json.loads(added)["error"]) == ("mine", None)
    assert run(PICTURE, "-o", out, "--overwrite")[0] == 0
    assert json.loads(out.read_text())["source"] == str(PICTURE)
    code, _, said = run(PICTURE, "-o", tmp_path / "rows.csv", "--append")
    assert code == 1 and "adds JSON lines" in said


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
@pytest.mark.parametrize("arguments", [("score", PICTURE), ("score", PICTURE, "--format", "table"), ("--version",)])
def test_a_full_disk_is_one_line(arguments: tuple[object, ...]) -> None:
    command = [*CLI, *map(str, arguments)]
    with open("/dev/full", "wb") as full:  # noqa: PTH123 (a device)
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, timeout=120, check=False)
    assert (done.returncode, done.stderr) == (1, "error: stdout: No space left on device\n")
    done = subprocess.run(
        [*CLI, "score", str(PICTURE), "-o", "/dev/full"], capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.returncode, done.stderr) == (1, "error: /dev/full: No space left on device\n")


def test_stdin_is_a_picture(tmp_path: Path) -> None:
    piped = run("/dev/stdin", stdin=PICTURE.read_bytes())
    with PICTURE.open("rb") as file:
        command = [*CLI, "score", "/dev/stdin"]
        opened = subprocess.run(command, stdin=file, capture_output=True, timeout=120, check=True).stdout
    expected = json.loads(run(PICTURE)[1])["score"]
    assert json.loads(piped[1])["score"] == json.loads(opened)["score"] == expected


def test_what_a_folder_holds_beside_pictures_is_said(tmp_path: Path) -> None:
    for name in ("a.jpg", "b.jfif", "._a.jpg", "c.heic", "notes.txt", "README"):
        shutil.copy(PICTURE, tmp_path / name)
    (tmp_path / "index.ts").write_text("export const x = 1;\n")
    code, stdout, said = run(tmp_path)
    assert code == 0
    assert [Path(json.loads(line)["source"]).name for line in stdout.splitlines()] == ["a.jpg", "b.jfif"]
    assert said.splitlines()[1:] == ["skipped in folders: 1 .heic, 1 .ts, 1 .txt, 1 hidden, 1 without a suffix"]


def test_an_install_without_pyav_scores_the_rest(tmp_path: Path) -> None:
    for name in ("1.jpg", "3.jpg"):
        shutil.copy(PICTURE, tmp_path / name)
    write_clip(tmp_path / "2.mkv", constant(3, 1), 1)
    code = "import sys; sys.modules['av'] = None; from qalign_fast.cli import main; main()"
    command = [sys.executable, "-c", code, "score", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row["error"] is None for row in rows] == [True, False, True]
    assert rows[1]["error"] == "reading video needs PyAV: pip install 'qalign-fast[video]'"
    assert (done.returncode, remarks(done.stderr).count("\n")) == (3, 1)


def test_limits_and_rules_from_the_command_line(tmp_path: Path, narrow: Golden) -> None:
    from PIL import Image

    Image.new("RGBA", (60, 40), (255, 0, 0, 0)).save(tmp_path / "clear.png")
    (tmp_path / "cut.jpg").write_bytes(PICTURE.read_bytes()[:-2])
    given = (tmp_path / "clear.png", tmp_path / "cut.jpg")

    def rows(*options: object) -> list[dict]:
        return [json.loads(line) for line in run(*given, *options)[1].splitlines()]

    clear, cut = rows()
    assert "alpha hides 100% of it" in clear["warnings"][0]
    assert "truncated" in cut["error"]
    white, whole = rows("--background", "white", "--allow-truncated")
    assert "warnings" not in white and white["score"] != clear["score"]
    assert "cut off" in whole["warnings"][0]
    assert whole["score"] == pytest.approx(json.loads(run(PICTURE)[1])["score"], abs=1e-3)
    assert all("max_pixels" in row["error"] for row in rows("--max-pixels", 100))
    assert all("max_bytes" in row["error"] for row in rows("--max-bytes", 10))
    assert "blurple" in run(*given, "--background", "blurple")[2]
    assert "there are: heic, jxl" in run(*given, "--formats", "tga")[2]


def test_what_parsers_print_stays_off_stderr(tmp_path: Path) -> None:
    """libtiff prints its errors, and Pillow warns; both leave a row."""
    sound = io.BytesIO()
    Image.fromarray(np.arange(64 * 64 * 3, dtype=np.uint8).reshape(64, 64, 3)).save(sound, "TIFF", compression="jpeg")
    tables = sound.getvalue().index(b"\xff\xc4") + 4
    for at, name in ((tables + 1, "tables.tif"), (8, "entries.tif")):
        damaged = bytearray(sound.getvalue())
        damaged[at : at + 8] = b"\xff" * 8
        (tmp_path / name).write_bytes(damaged)
    paths = sorted(tmp_path.iterdir())
    pillow = "import sys; from PIL import Image; Image.open(sys.argv[1]).load()"
    for path in paths:
        alone = subprocess.run([sys.executable, "-c", pillow, path], capture_output=True, text=True, check=False)
        assert alone.stderr.partition("Traceback")[0], path  # without us there is such a line
    code, stdout, said = run(*paths)
    assert (code, len(stdout.splitlines())) == (3, len(paths))
    assert said.count("\n") == 1
