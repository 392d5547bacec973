"""One bar in a terminal, a line now and then without one, nothing from processes that are to be quiet."""

from __future__ import annotations

import io
import sys
import time

import pytest

from logitbank import progress
from logitbank.progress import Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def _often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0.02)


@pytest.mark.usefixtures("_often")
def test_without_a_terminal_lines_come_during_a_single_long_step(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress("base", 14_000, "answers") as shown:
        shown.advance(1_400)
        time.sleep(0.2)
        shown.say("a cell is done")
    printed = capsys.readouterr()
    lines = printed.err.splitlines()
    assert len(lines) >= 2
    assert all(line.startswith("base: 1,400 of 14,000 answers (10%), 0:0") and line.endswith(" left") for line in lines)
    assert printed.out == "a cell is done\n"


@pytest.mark.usefixtures("_often")
def test_before_the_first_step_no_time_is_guessed(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress("teacher", 90, "tokens"):
        time.sleep(0.1)
    assert set(capsys.readouterr().err.splitlines()) == {"teacher: 0 of 90 tokens"}


def test_the_time_left_is_that_of_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    shown = Progress("base", 100, "answers")
    shown.advance(20)
    now += 900
    assert shown.line() == "base: 20 of 100 answers (20%), 1:00:00 left"
    shown.advance(60)
    assert shown.line() == "base: 80 of 100 answers (80%), 3:45 left"


def test_a_terminal_gets_a_bar_that_goes_away(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal, out = Terminal(), io.StringIO()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setattr(sys, "stdout", out)
    with Progress("base", 40, "answers") as shown:
        shown.advance(30)
        shown.say("a cell is done")
    assert "base:  75%" in terminal.getvalue()
    assert "30/40 answers" in terminal.getvalue()
    assert out.getvalue() == "a cell is done\n"
    assert terminal.getvalue().endswith("\r"), "nothing of the bar is left"


@pytest.mark.usefixtures("_often")
def test_a_quiet_process_shows_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress("base", 2, "answers", quiet=True) as shown:
        shown.advance(1)
        time.sleep(0.1)
    assert capsys.readouterr().err == ""
