"""`query-results`: averages against plain loops, tables, SQL in every format, errors."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import pty
import re
import resource
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from rich.cells import cell_len

from logitbank.evaluation import query_command
from logitbank.evaluation.report.markdown import markdown_table
from logitbank.evaluation.report.table import average, percent
from logitbank.experiment import STUDY_CONDITIONS
from logitbank.storage.results.catalogue import Catalogue
from tests.evaluation.conftest import add_run

GRID = [("nli", "en"), ("nli", "hi"), ("pa", "en"), ("qa", "en"), ("qa", "hi")]


def _values(seed: int) -> dict[tuple[str, str], float]:
    rng = np.random.default_rng(seed)
    return {cell: float(rng.uniform()) for cell in GRID}


def run(results: Path, *arguments: str) -> None:
    query_command.main(["--results", str(results), *arguments])


def table_of(text: str, title: str) -> dict[str, dict[str, str]]:
    """The Markdown table under a heading: row label -> column -> text."""
    lines = text.split(f"# {title}\n")[1].splitlines()
    body = lines[: next((i for i, line in enumerate(lines) if line.startswith("#")), len(lines))]
    rows = [[c.strip() for c in line.strip().strip("|").split("|")] for line in body if line.startswith("|")]
    header, _, *data = rows
    return {row[0]: dict(zip(header[1:], row[1:], strict=True)) for row in data}


def test_both_averages_equal_plain_loops(tmp_path: Path) -> None:
    values = _values(0)
    add_run(tmp_path, values)
    (row,) = Catalogue([tmp_path]).rows("SELECT * FROM averages")
    per_task = {task: np.mean([v for (t, _), v in values.items() if t == task]) for task in ("nli", "pa", "qa")}
    assert row["task_language_mean"] == pytest.approx(np.mean(list(values.values())), rel=1e-12)
    assert row["task_mean"] == pytest.approx(np.mean(list(per_task.values())), rel=1e-12)
    assert row["task_mean"] != pytest.approx(row["task_language_mean"], rel=1e-3)
    assert (row["cells"], row["expected_cells"], row["tasks"]) == (5, 5, 3)


def test_seeds_are_averaged_within_a_cell_first(tmp_path: Path) -> None:
    a, b = _values(1), _values(2)
    del b["qa", "hi"]
    add_run(tmp_path, a, condition="finetuned", seed=1)
    add_run(tmp_path, b, condition="finetuned", seed=2)
    cells = {cell: np.mean([v[cell] for v in (a, b) if cell in v]) for cell in GRID}
    (row,) = Catalogue([tmp_path]).rows("SELECT * FROM averages")
    assert row["task_language_mean"] == pytest.approx(np.mean(list(cells.values())), rel=1e-12)
    assert row["seeds"] == 2


def test_the_last_checkpoint_and_the_newest_run_count(tmp_path: Path) -> None:
    cell = ("nli", "en")
    add_run(tmp_path, {cell: 0.1}, condition="finetuned", step=200, day=3)
    add_run(tmp_path, {cell: 0.2}, condition="finetuned", step=400, day=1)
    add_run(tmp_path, {cell: 0.3}, condition="finetuned", step=400, day=2)
    assert [row["value"] for row in Catalogue([tmp_path]).rows("SELECT value FROM cells")] == [0.3]
    steps = Catalogue([tmp_path]).rows("SELECT step, value FROM scores ORDER BY step")
    assert steps == [{"step": 200, "value": 0.1}, {"step": 400, "value": 0.3}]


def test_gaps_pair_the_same_setup_and_variant(tmp_path: Path) -> None:
    add_run(tmp_path, {("nli", "en"): 0.50, ("nli", "hi"): 0.40}, condition="finetuned", setup="s1")
    add_run(tmp_path, {("nli", "en"): 0.90}, condition="finetuned", setup="s2")
    add_run(tmp_path, {("nli", "en"): 0.60, ("nli", "hi"): 0.45}, condition="distilled", variant="λ=0.5", setup="s1")
    add_run(tmp_path, {("nli", "en"): 0.70}, condition="distilled", variant="λ=0.1", setup="s1")
    add_run(tmp_path, {("nli", "en"): 0.52, ("nli", "hi"): 0.42}, condition="control", variant="λ=0.5", setup="s1")
    rows = Catalogue([tmp_path]).rows("SELECT gap, variant, difference, languages FROM task_gaps ORDER BY ALL")
    got = [(r["gap"], r["variant"], round(r["difference"], 9), r["languages"]) for r in rows]
    assert got == [
        ("control-finetuned", "λ=0.5", 0.02, 2),
        ("distilled-control", "λ=0.5", 0.055, 2),
        ("distilled-finetuned", "λ=0.1", 0.2, 1),
        ("distilled-finetuned", "λ=0.5", 0.075, 2),
    ]


def test_tables_show_missing_cells_and_incomplete_averages(tmp_path: Path, capsys: Any) -> None:
    add_run(tmp_path, dict.fromkeys(GRID, 0.5), model="org/full", condition="base")
    add_run(tmp_path, {("nli", "en"): 0.25, ("pa", "en"): 0.75}, model="part", condition="base")
    add_run(tmp_path, {("nli", "en"): 0.4}, model="part", condition="finetuned")
    run(tmp_path, "tables", "--cells")
    text = capsys.readouterr().out
    summary = table_of(text, "Summary per condition: task_language_mean")
    assert summary == {
        "full": {"base": "50.0", "finetuned": "—"},
        "part": {"base": "50.0 (2/5)", "finetuned": "40.0 (1/5)"},
    }
    assert table_of(text, "Summary per condition: task_mean")["part"]["base"] == "50.0 (2/5)"
    nli = table_of(text, "base: nli (accuracy, %)")
    assert nli["part"] == {"en": "25.0", "hi": "—", "language_mean": "25.0 (1/2)", "seeds": "1"}
    assert nli["full"] == {"en": "50.0", "hi": "50.0", "language_mean": "50.0", "seeds": "1"}


def test_overview_has_the_three_gaps(tmp_path: Path, capsys: Any) -> None:
    for condition, value in (("finetuned", 0.50), ("distilled", 0.56), ("control", 0.45)):
        add_run(tmp_path, {("nli", "en"): value}, condition=condition)
    run(tmp_path, "tables", "--cells")
    row = table_of(capsys.readouterr().out, "Overview: m")["nli (accuracy)"]
    assert row["distilled−finetuned"] == "+6.0 ±?"
    assert row["control−finetuned"] == "-5.0 ±?"
    assert row["distilled−control"] == "+11.0 ±?"


def test_variants_are_told_apart(tmp_path: Path, capsys: Any) -> None:
    for variant, value in (("λ=0.05", 0.6), ("λ=0.5", 0.4)):
        add_run(tmp_path, {("nli", "en"): value}, condition="distilled", variant=variant)
    run(tmp_path, "tables", "--cells")
    text = capsys.readouterr().out
    assert table_of(text, "Summary per condition: task_mean")["m"] == {
        "distilled (λ=0.05)": "60.0",
        "distilled (λ=0.5)": "40.0",
    }
    assert set(table_of(text, "distilled: nli (accuracy, %)")) == {"m (λ=0.05)", "m (λ=0.5)"}


def test_the_report_is_written_whole(tmp_path: Path) -> None:
    add_run(tmp_path / "r", _values(0))
    run(tmp_path / "r", "report", "--output", str(tmp_path / "deep" / "report.md"))
    text = (tmp_path / "deep" / "report.md").read_text()
    assert text.startswith("# Results\n")
    assert "Summary per condition: task_mean" in text
    assert [path.name for path in (tmp_path / "deep").iterdir() if path.name.startswith(".")] == []


def test_sql_formats_agree(tmp_path: Path, capsys: Any) -> None:
    values = _values(5)
    add_run(tmp_path, values)
    query = (
        "SELECT task, language, value, metrics.step FROM cells JOIN metrics USING (task, language, value) ORDER BY ALL"
    )
    expected = sorted((task, language, value) for (task, language), value in values.items())
    run(tmp_path, "sql", query, "--format", "json")
    assert [(r["task"], r["language"], r["value"]) for r in json.loads(capsys.readouterr().out)] == expected
    run(tmp_path, "sql", query, "--format", "csv")
    rows = list(csv.reader(io.StringIO(capsys.readouterr().out)))
    assert rows[0] == ["task", "language", "value", "step"]
    assert [(task, language, float(value)) for task, language, value, step in rows[1:] if step == ""] == expected
    run(tmp_path, "sql", query, "--format", "parquet", "--output", str(tmp_path / "out.parquet"))
    assert pq.read_table(tmp_path / "out.parquet")["value"].to_pylist() == [value for *_, value in expected]
    run(tmp_path, "sql", query, "--format", "markdown")
    assert capsys.readouterr().out.count("\n") == 7
    run(tmp_path, "sql", query)
    assert "5 rows" in capsys.readouterr().out


def test_torn_files_are_named_on_stderr(tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: Any) -> None:
    add_run(tmp_path, _values(0))
    (tmp_path / "metrics" / "torn.parquet").write_bytes(b"PAR1 half")
    run(tmp_path, "sql", "SELECT count(*) AS n FROM metrics")
    assert "torn.parquet is damaged and skipped" in caplog.text + capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["sql", "SELEC 1"], "error: sql: Parser Error"),
        (["tables"], "no metrics in"),
        (["report", "--output", "x.md"], "contains no metrics"),
        (["sql", "SELECT 1", "--format", "parquet"], "needs --output FILE"),
        (["sql", "SELECT 1", "--format", "csv", "--output", "/dev/null/x"], "cannot write"),
        (["--memory", "10XB", "tables"], "error: --memory: expected a size such as 512MB or 4GB, got '10XB'"),
        (["--memory", "lots", "sql", "SELECT 1"], "error: --memory: expected a size such as"),
        (["--memory", "64MB", "sql", "SELECT 1"], "error: --memory: expected at least 512MB, got 64MB"),
    ],
)
def test_errors_are_one_line_and_exit_code_2(tmp_path: Path, capsys: Any, arguments: list[str], message: str) -> None:
    with pytest.raises(SystemExit) as caught:
        run(tmp_path, *arguments)
    assert caught.value.code == 2
    error = capsys.readouterr().err.strip()
    assert message in error
    assert "\n" not in error


def test_a_missing_results_directory(tmp_path: Path, capsys: Any) -> None:
    with pytest.raises(SystemExit) as caught:
        run(tmp_path / "none", "tables")
    assert caught.value.code == 2
    assert "--results: no directory" in capsys.readouterr().err


def test_numbers_as_text() -> None:
    assert percent(0.637) == "63.7"
    assert percent(None) == percent(float("nan")) == "—"
    assert percent(-0.0001, signed=True) == "0.0"
    assert percent(0.031, signed=True) == "+3.1"
    assert average(0.285, 17, 28) == "28.5 (17/28)"
    assert markdown_table(["a", "b"], [["x|y", "中文"]]).splitlines() == [
        "| a    |    b |",
        "| ---- | ---: |",
        "| x\\|y | 中文 |",
    ]


def in_a_terminal(monkeypatch: pytest.MonkeyPatch, results: Path, *arguments: str) -> str:
    """What `tables` prints where standard output is a terminal of 80 columns."""
    master, slave = pty.openpty()
    received = []

    def read() -> None:
        with contextlib.suppress(OSError):  # the end of a terminal
            while chunk := os.read(master, 65536):
                received.append(chunk)

    reader = threading.Thread(target=read)
    reader.start()
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "xterm")
    with os.fdopen(slave, "w") as terminal, monkeypatch.context() as patched:
        patched.setattr("sys.stdout", terminal)
        run(results, "tables", *arguments)
    reader.join()
    os.close(master)
    text = b"".join(received).decode().replace("\r", "")
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


def _study(results: Path) -> None:
    for model in ("Llama-3.2-3B-Instruct", "Qwen3-1.7B"):
        for condition in STUDY_CONDITIONS:
            add_run(results, _values(len(condition)), model=model, condition=condition)


def test_tables_fit_a_terminal_of_80_columns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _study(tmp_path)
    for variant in ("λ=0.05", "λ=0.1", "λ=0.2", "λ=0.5", "meta λ=1"):
        about = {"condition": "distilled", "variant": variant, "lambda_distill": 0.5}
        add_run(tmp_path, _values(7), model="Qwen3-1.7B", **about)
    text = in_a_terminal(monkeypatch, tmp_path, "--cells")
    assert max(cell_len(line) for line in text.splitlines()) <= 80
    assert "…" not in text, "something is cut"
    words = set(text.split())
    assert {"Llama-3.2-3B-Instruct", "distilled−finetuned", "(λ=0.05)", "language_mean", "1"} <= words
    for value in _values(4).values():
        assert percent(value) in words


def test_a_terminal_starts_and_ends_on_a_summary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _study(tmp_path)
    text = in_a_terminal(monkeypatch, tmp_path)
    assert text.startswith("Summary per condition: task_language_mean\n")
    end = " ".join(text.split("\nIn short\n")[1].split())
    assert end.startswith("2 models under 5 conditions in 5 cells; 0 predictions of 0 evaluations.")
    assert f"Qwen3-1.7B, `task_language_mean` in %: base {percent(np.mean(list(_values(4).values())))}" in end
    assert "Qwen3-1.7B, distilled against finetuned: without predictions to judge by in nli, pa, qa." in end
    assert "#" not in text
    assert "|" not in text
    markdown = in_a_terminal(monkeypatch, tmp_path, "--markdown")
    assert markdown.startswith("## Summary per condition: task_language_mean\n\n| model")
    assert "## In short" in markdown


def test_tables_of_cells_come_on_request(tmp_path: Path, capsys: Any) -> None:
    add_run(tmp_path, _values(0))
    run(tmp_path, "tables")
    assert "base: nli" not in capsys.readouterr().out
    run(tmp_path, "tables", "--cells")
    assert "base: nli (accuracy, %)" in capsys.readouterr().out


def test_an_imported_sweep_is_no_column_of_the_summary(shared: Path, tmp_path: Path, capsys: Any) -> None:
    run(tmp_path, "import", str(shared / "reference" / "xtreme_results.csv"))
    run(tmp_path, "tables")
    before = table_of(capsys.readouterr().out, "Summary per condition: task_mean")
    run(tmp_path, "import", str(shared / "reference" / "lambda_sweep.csv"), "--model", "Llama-3.2-3B")
    run(tmp_path, "tables")
    text = capsys.readouterr().out
    assert set(table_of(text, "Summary per condition: task_mean")) == set(before) == {"Llama-3.2-3B", "Qwen3-1.7B"}
    conditions = list(table_of(text, "Summary per condition: task_mean")["Llama-3.2-3B"])
    assert conditions == ["base", "fewshot", "finetuned", "distilled", "control"]
    assert "distilled λ=0.05" in table_of(text, "λ sweep: Llama-3.2-3B (published 1-task)")
    assert "The tables `λ sweep` show 10 more rows of imported λ sweeps." in text


def test_help_costs_at_most_a_second_of_processor_time() -> None:
    """A fresh interpreter: what the commands need is imported after the arguments are read."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-m", "logitbank.evaluation.query_command", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert "shell" in done.stdout
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime <= 1
