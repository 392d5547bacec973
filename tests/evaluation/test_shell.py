"""`query-results shell`: statements over lines, errors that do not end it."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest

from logitbank.evaluation.shell import run_shell
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
