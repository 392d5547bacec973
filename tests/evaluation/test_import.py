"""Importing published numbers: the study's own averages come out, wrong files are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from logitbank.evaluation import query_command
from logitbank.evaluation.import_csv import condition_name
from logitbank.storage.results.catalogue import Catalogue
from tests.evaluation.conftest import add_run
from tests.evaluation.test_query import run, table_of


def test_the_study_comes_out_as_published(shared: Path, tmp_path: Path, capsys: Any) -> None:
    run(tmp_path, "import", str(shared / "reference" / "xtreme_results.csv"))
    assert "imported 198 cells of 7 models and conditions" in capsys.readouterr().out
    run(tmp_path, "tables", "--cells")
    text = capsys.readouterr().out
    cells = table_of(text, "Summary per condition: task_language_mean")
    assert cells["Llama-3.2-3B"] == {
        "base": "30.6", "fewshot": "35.7", "finetuned": "63.7", "distilled": "59.6", "control": "44.8",
    }  # fmt: skip
    assert cells["Qwen3-1.7B"]["base"] == "28.5 (17/28)"
    assert table_of(text, "Summary per condition: task_mean")["Llama-3.2-3B"]["finetuned"] == "64.2"
    overview = table_of(text, "Overview: Llama-3.2-3B")
    assert overview["pos (accuracy)"]["finetuned"] == "73.0"
    assert overview["nli (accuracy)"]["distilled−finetuned"] == "+3.7 ±?"
    assert overview["pa (accuracy)"]["control−finetuned"] == "-14.3 ±?"
    assert table_of(text, "finetuned: qa (exact_match, %)")["Llama-3.2-3B"]["language_mean"] == "46.4"
    assert table_of(text, "fewshot: ner (f1, %)")["Qwen3-1.7B"]["zh"] == "—"


def test_the_sweep_keeps_its_lambdas_and_settings_apart(shared: Path, tmp_path: Path) -> None:
    run(tmp_path, "import", str(shared / "reference" / "lambda_sweep.csv"), "--model", "Llama-3.2-3B")
    rows = Catalogue([tmp_path]).rows(
        "SELECT condition, setup, lambda_distill AS l, round(100 * language_mean, 1) AS f1 "
        "FROM task_averages WHERE task = 'ner' ORDER BY ALL"
    )
    got = [(r["condition"], r["setup"].removeprefix("published "), r["l"], r["f1"]) for r in rows]
    assert ("distilled", "1-task", 0.05, 41.6) in got
    assert ("finetuned", "1-task", 0.0, 29.4) in got
    assert ("finetuned", "5-task", None, 51.2) in got
    assert ("control", "1-task", 0.5, 26.4) in got
    assert len(got) == 10
    (gap,) = Catalogue([tmp_path]).rows(
        "SELECT difference FROM task_gaps WHERE gap = 'distilled-finetuned' AND task = 'ner' AND variant = 'λ=0.05'"
    )
    assert round(100 * gap["difference"], 1) == 12.2


def test_importing_twice_changes_nothing(tmp_path: Path, capsys: Any) -> None:
    file = _csv(tmp_path, "m,base,nli,accuracy,en,50")
    run(tmp_path / "r", "import", str(file))
    run(tmp_path / "r", "import", str(file))
    assert "already imported" in capsys.readouterr().out
    assert Catalogue([tmp_path / "r"]).rows("SELECT count(*) AS n FROM metrics") == [{"n": 1}]


def test_published_and_own_numbers_of_one_model_stay_apart(tmp_path: Path, capsys: Any) -> None:
    add_run(tmp_path / "r", {("nli", "en"): 0.25}, model="m")
    run(tmp_path / "r", "import", str(_csv(tmp_path, "m,base,nli,accuracy,en,50")))
    capsys.readouterr()
    run(tmp_path / "r", "tables", "--cells")
    rows = table_of(capsys.readouterr().out, "base: nli (accuracy, %)")
    assert {label: row["en"] for label, row in rows.items()} == {"m (published)": "50.0", "m (setup s)": "25.0"}


@pytest.mark.parametrize(
    ("text", "name"),
    [("Few-Shot", "fewshot"), ("Fine-Tuned", "finetuned"), ("NER-SFT", "finetuned"), ("Base", "base"),
     ("Distilled λ=0.05", "distilled"), ("NER-Control (λ=0.5)", "control"), ("Meta λ", "Meta")],
)  # fmt: skip
def test_condition_names(text: str, name: str) -> None:
    assert condition_name(text) == name


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([], "has a header but no rows"),
        (["m,base,nli,accuracy,en,abc"], "line 2: expected a number, got 'abc'"),
        (["m,base,nli,accuracy,en,50", "m,base,nli,accuracy,en,51"], "lines 2 and 3 describe the same cell"),
        (["m,base,nli,accuracy,xx,50"], "line 2: lang: expected one of en"),
        (["m,base,nli,accuracy,en,150"], "expected 0 to 100"),
        (["m,,nli,accuracy,en,50"], "line 2: expected condition"),
        (["m,base,nope,,en,50"], "task 'nope' is not a built-in task"),
        (
            ["m,base,chat,cross_entropy,en,2.1"],
            "line 2: metric: expected a score, a fraction or in %, got cross_entropy",
        ),
    ],
)
def test_wrong_files_are_refused_in_one_line(tmp_path: Path, capsys: Any, lines: list[str], message: str) -> None:
    _fails(tmp_path, capsys, _csv(tmp_path, *lines), message)
    assert not (tmp_path / "r").exists()


def test_missing_file_and_column(tmp_path: Path, capsys: Any) -> None:
    _fails(tmp_path, capsys, tmp_path / "none.csv", "cannot read")
    file = tmp_path / "x.csv"
    file.write_text("model,task,lang,value\nm,nli,en,5\n")
    _fails(tmp_path, capsys, file, "lacks the column 'condition'; it has model, task, lang, value")


def _csv(directory: Path, *lines: str) -> Path:
    path = directory / "published.csv"
    path.write_text("\n".join(["model,condition,task,metric,lang,value", *lines]) + "\n", encoding="utf-8")
    return path


def _fails(tmp_path: Path, capsys: Any, file: Path, message: str) -> None:
    with pytest.raises(SystemExit) as caught:
        query_command.main(["--results", str(tmp_path / "r"), "import", str(file)])
    assert caught.value.code == 2
    error = capsys.readouterr().err.strip()
    assert message in error
    assert "\n" not in error


def test_what_an_earlier_version_imported_is_not_imported_again(tmp_path: Path, capsys: Any) -> None:
    """Version 0.1.0 named the rows of a file after a hash of its content."""
    file = _csv(tmp_path, "m,base,nli,accuracy,en,50")
    run(tmp_path / "r", "import", str(file))
    (path,) = (tmp_path / "r" / "metrics").iterdir()
    assert path.stem == "import-published-66c984f889"
