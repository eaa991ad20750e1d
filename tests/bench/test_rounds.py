"""Contestants as processes: how they take turns, and the error where one fails."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import pytest

from qalign_bench.contestants.process import Contestant
from qalign_bench.contestants.rounds import fit_together, play, play_in_turns
from qalign_fast.errors import QAlignError


class Fake(Contestant):
    """Notes when it is started, has its turn and ends."""

    log: ClassVar[list[str]] = []

    @contextmanager
    def start(self) -> Iterator[Any]:
        self.log.append(f"+{self.name}")
        yield self
        self.log.append(f"-{self.name}")


class Logged:
    def loading(self, contestant: Contestant) -> None:
        pass

    def turn(self, _: int, process: Any) -> None:
        Fake.log.append(process.name)

    def after(self) -> None:
        Fake.log.append("|")


def test_contestants_are_interleaved_and_take_turns_where_they_must() -> None:
    both = [Fake("a", (), {}), Fake("b", (), {})]
    Fake.log.clear()
    play(Logged(), both, 2)
    assert " ".join(Fake.log) == "+a +b a b | a b | -b -a"
    Fake.log.clear()
    play_in_turns(Logged(), both, 2)
    assert " ".join(Fake.log) == "+a a -a +b b -b | +a a -a +b b -b |"


def test_contestants_too_large_together_do_not_fit() -> None:
    small, large = Contestant("small", (), {}, 1), Contestant("large", (), {}, 1 << 60)
    assert fit_together([small])
    assert not fit_together([small, large])


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ('print(\'{"error": "no such checkout"}\'); raise SystemExit(1)', "x: no such checkout"),
        ("raise RuntimeError('no weights')", r"x: its process ended \(status 1\): RuntimeError: no weights"),
        ("import os; os.kill(os.getpid(), 9)", "out of memory"),
    ],
)
def test_a_contestant_that_fails_says_why(code: str, said: str) -> None:
    with pytest.raises(QAlignError, match=said):
        Contestant("x", (sys.executable, "-c", code), {}).start()


def test_a_contestant_that_dies_between_commands_says_why() -> None:
    code = "print('{}', flush=True); input(); raise ValueError('gone')"
    with Contestant("x", (sys.executable, "-c", code), {}).start() as process:
        with pytest.raises(QAlignError, match="ValueError: gone"):
            process.ask("latency")
        with pytest.raises(QAlignError, match="ValueError: gone"):
            process.ask("latency")


def test_a_missing_interpreter_is_one_line() -> None:
    with pytest.raises(QAlignError, match="x: /nowhere/python: No such file"):
        Contestant("x", ("/nowhere/python",), {}).start()
