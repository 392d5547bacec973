"""`query-results shell`: statements over lines, errors that do not end it."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from prompt_toolkit.application import create_app_session
from prompt_toolkit.completion import CompleteEvent
from prompt_toolkit.document import Document
from prompt_toolkit.input import create_pipe_input
from prompt_toolkit.output import DummyOutput

from logitbank.evaluation.shell import SqlCompleter, completions, run_shell, terminal_reader
from logitbank.storage.results.catalogue import Catalogue
from tests.evaluation.conftest import add_run
from tests.evaluation.test_query import run


def _type(results: Path, *lines: str) -> None:
    typed = iter(lines)

    def read(_: str) -> str:
        try:
            return next(typed)
        except StopIteration:
            raise EOFError from None

    run_shell(Catalogue([results]), read)


def test_statements_views_and_formats(tmp_path: Path, capsys: Any) -> None:
    add_run(tmp_path, {("nli", "en"): 0.25})
    _type(
        tmp_path, ".format csv", "SELECT task,", "value FROM cells;", "CREATE VIEW mine AS SELECT 1 AS one;", ".views"
    )
    printed = capsys.readouterr().out
    assert "task,value\nnli,0.25\n" in printed
    assert "mine" in printed
    assert "cells" in printed


def test_errors_do_not_end_it(tmp_path: Path, capsys: Any) -> None:
    add_run(tmp_path, {("nli", "en"): 0.25})
    _type(tmp_path, ".format csv", "SELEC;", "COPY (SELECT 1) TO 'x';", ".nonsense", "SELECT 7 AS n")
    printed = capsys.readouterr().out
    assert printed.count("error: sql: ") == 2
    assert "columns VIEW" in printed
    assert printed.endswith("n\n7\n")


def test_the_command_reads_a_pipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    add_run(tmp_path, {("nli", "en"): 0.25})
    monkeypatch.setattr("sys.stdin", io.StringIO(".format csv\nSELECT count(*) AS n FROM metrics;\n"))
    run(tmp_path, "shell")
    assert capsys.readouterr().out == "n\n1\n"


def test_help_exit_and_views_need_no_semicolon(tmp_path: Path, capsys: Any) -> None:
    add_run(tmp_path, {("nli", "en"): 0.25})
    _type(tmp_path, "help", "format csv", "views", "columns task_averages", "exit", "SELECT 1 AS never;")
    printed = capsys.readouterr().out
    assert printed.startswith("SQL ends with a semicolon")
    assert "\ncheckpoint_curves\n" in printed
    assert "\nlanguage_mean,DOUBLE\n" in printed
    assert "never" not in printed


@pytest.mark.parametrize("leave", ["exit", "quit", ".quit", "exit;", "  exit  "])
def test_every_way_to_leave(leave: str, tmp_path: Path, capsys: Any) -> None:
    add_run(tmp_path, {("nli", "en"): 0.25})
    _type(tmp_path, leave, "SELECT 1 AS never;")
    assert capsys.readouterr().out == ""


def test_a_word_inside_a_statement_is_no_command(tmp_path: Path, capsys: Any) -> None:
    add_run(tmp_path, {("nli", "en"): 0.25})
    _type(tmp_path, "format csv", "SELECT 1 AS", "help", ";")
    assert capsys.readouterr().out == "help\n1\n"


def test_views_columns_and_commands_are_completed(tmp_path: Path) -> None:
    add_run(tmp_path, {("nli", "en"): 0.25})
    catalogue = Catalogue([tmp_path])
    catalogue.query("CREATE VIEW checked AS SELECT 1 AS checksum")

    def offered(before: str, word: str) -> list[str]:
        return [text for text, _ in completions(catalogue, before, word)]

    assert offered("SELECT * FROM ", "check") == ["checked", "checkpoint_curves", "checkpoint", "checksum"]
    assert offered("", "help") == ["help"]
    assert offered("SELECT ", "help") == []
    assert offered("format ", "c") == ["csv"]
    assert offered("sel", "SEL") == ["SELECT"]
    assert ("language_mean", "column of checkpoint_curves, lambda_sweep, task_averages") in completions(
        catalogue, "SELECT ", "language_m"
    )


def test_the_word_before_the_cursor_is_replaced(tmp_path: Path) -> None:
    add_run(tmp_path, {("nli", "en"): 0.25})
    completer = SqlCompleter(Catalogue([tmp_path]))
    (found,) = completer.get_completions(Document("SELECT language_mean FROM task_av"), CompleteEvent())
    assert (found.text, found.start_position) == ("task_averages", -len("task_av"))


def test_a_terminal_reads_lines(tmp_path: Path) -> None:
    add_run(tmp_path, {("nli", "en"): 0.25})
    with create_pipe_input() as keys, create_app_session(input=keys, output=DummyOutput()):
        read = terminal_reader(Catalogue([tmp_path]))
        keys.send_text("SELECT 1;\r")
        assert read("sql> ") == "SELECT 1;"
        keys.send_text("\x04")  # Ctrl-D
        with pytest.raises(EOFError):
            read("sql> ")
