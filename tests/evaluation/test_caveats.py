"""What series differ in is in their names, and what their numbers hide stands below them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.evaluation.conftest import add_run
from tests.evaluation.test_query import run, table_of

CELL = ("nli", "en")


def _student(results: Path, value: float, condition: str, teacher: str = "org/Qwen3-8B", **identity: Any) -> None:
    """A student of 1,000 steps, distilled by λ = 0.5 from a store of that teacher."""
    steps = identity.pop("max_steps", 1000)
    fingerprint = f"{teacher[-2:]}c0ffee"
    view = {"distilled": "fewshot", "control": "zeroshot"}.get(condition)
    about = {"training_run": f"t-{condition}-{teacher}", "max_steps": steps, "training_set": "d"}
    if view:
        about |= {"view": view, "teacher": teacher, "top_k": 256, "view_fingerprint": fingerprint}
        about |= {"store_fingerprint": fingerprint}
        identity = {"variant": "λ=0.5", "lambda_distill": 0.5, **identity}
    identity = {"step": steps, "setup": f"setup{steps}", "day": len(teacher), **identity}
    add_run(results, {CELL: value}, condition=condition, about=about, **identity)


def _overview(results: Path, capsys: Any) -> tuple[Mapping[str, str], str]:
    run(results, "tables")
    text = capsys.readouterr().out
    return table_of(text, "Overview: m")["nli (accuracy)"], text


def test_students_of_two_teachers_have_columns_and_gaps_of_their_own(tmp_path: Path, capsys: Any) -> None:
    _student(tmp_path, 0.5, "finetuned")
    for teacher, distilled, control in (("org/Qwen3-8B", 0.6, 0.55), ("org/Llama-3.1-70B", 0.8, 0.65)):
        _student(tmp_path, distilled, "distilled", teacher)
        _student(tmp_path, control, "control", teacher)
    row, _ = _overview(tmp_path, capsys)
    assert row == {
        "finetuned": "50.0",
        "distilled (Llama-3.1-70B 0Bc0ff)": "80.0",
        "distilled (Qwen3-8B 8Bc0ff)": "60.0",
        "control (Llama-3.1-70B 0Bc0ff)": "65.0",
        "control (Qwen3-8B 8Bc0ff)": "55.0",
        "distilled−finetuned (Llama-3.1-70B 0Bc0ff)": "+30.0 ±?",
        "distilled−finetuned (Qwen3-8B 8Bc0ff)": "+10.0 ±?",
        "control−finetuned (Llama-3.1-70B 0Bc0ff)": "+15.0 ±?",
        "control−finetuned (Qwen3-8B 8Bc0ff)": "+5.0 ±?",
        "distilled−control (Llama-3.1-70B 0Bc0ff)": "+15.0 ±?",
        "distilled−control (Qwen3-8B 8Bc0ff)": "+5.0 ±?",
    }


def test_one_teacher_is_not_named(tmp_path: Path, capsys: Any) -> None:
    for condition in ("finetuned", "distilled"):
        _student(tmp_path, 0.5, condition)
    assert list(_overview(tmp_path, capsys)[0]) == ["finetuned", "distilled", "distilled−finetuned"]


def test_lengths_are_named_and_never_compared_with_one_another(tmp_path: Path, capsys: Any) -> None:
    _student(tmp_path, 0.4, "finetuned", max_steps=200)
    _student(tmp_path, 0.5, "finetuned")
    _student(tmp_path, 0.7, "distilled")
    row, text = _overview(tmp_path, capsys)
    assert "Checkpoints" not in text, "the ends of two runs are no curve"
    assert list(row)[:2] == ["finetuned (200 steps)", "finetuned (1,000 steps)"]
    assert row == {
        "finetuned (200 steps)": "40.0",
        "finetuned (1,000 steps)": "50.0",
        "distilled": "70.0",
        "distilled−finetuned": "+20.0 ±?",
    }


def test_a_checkpoint_before_the_end_says_so(tmp_path: Path, capsys: Any) -> None:
    _student(tmp_path, 0.4, "finetuned", step=200)
    _, text = _overview(tmp_path, capsys)
    assert "Evaluated before the end of training: m finetuned at step 200 of 1,000." in text
    assert "Evaluated before the end of training: finetuned at step 200 of 1,000." in text.split("Overview: m")[1]


def test_demonstrations_that_did_not_fit_and_answers_cut_short_are_shown(tmp_path: Path, capsys: Any) -> None:
    for language, kept, cut in (("en", 3.0, 0.0), ("hi", 0.5, 0.028)):
        asked = {"demonstrations": kept, "demonstrations_wanted": 3.0, "cut_short": cut}
        add_run(tmp_path, {("qa", language): 0.5}, condition="fewshot", asked=asked)
    run(tmp_path, "tables", "--cells")
    text = capsys.readouterr().out
    assert "Mean demonstrations kept in a prompt: fewshot qa 1.8 of 3." in text
    assert "Answers cut short at the limit of new tokens: fewshot qa 1.4%." in text
    table = table_of(text, "fewshot: qa (f1, %)")
    assert table["m: demonstrations"] == {"en": "—", "hi": "0.5 of 3", "language_mean": "1.8 of 3", "seeds": "—"}
    assert table["m: cut short"] == {"en": "—", "hi": "2.8%", "language_mean": "1.4%", "seeds": "—"}


def test_nothing_is_said_where_nothing_is_hidden(tmp_path: Path, capsys: Any) -> None:
    asked = {"demonstrations": 3.0, "demonstrations_wanted": 3.0, "cut_short": 0.0}
    add_run(tmp_path, {("qa", "en"): 0.5}, condition="fewshot", asked=asked)
    _student(tmp_path, 0.4, "finetuned")
    run(tmp_path, "tables", "--cells")
    text = capsys.readouterr().out
    for word in ("demonstrations", "cut short", "before the end", "Seeds:"):
        assert word not in text


def test_cells_with_fewer_seeds_say_so(tmp_path: Path, capsys: Any) -> None:
    for seed in (1, 2):
        add_run(tmp_path, {("nli", "en"): 0.5}, condition="finetuned", seed=seed)
    add_run(tmp_path, {("nli", "hi"): 0.5}, condition="finetuned", seed=1)
    run(tmp_path, "tables")
    assert "Seeds: finetuned 2 (1 in some cells)." in capsys.readouterr().out
    add_run(tmp_path, {("nli", "en"): 0.5}, condition="base")
    run(tmp_path, "tables")
    assert "Seeds: finetuned 2 (1 in some cells), all others 1." in capsys.readouterr().out


def test_the_summary_in_words_stays_short(tmp_path: Path, capsys: Any) -> None:
    """Many variants are a range and a count; the tables have each of them."""
    _student(tmp_path, 0.5, "finetuned")
    for strength in (0.05, 0.1, 0.5, 1.0):
        about = {"variant": f"λ={strength:g}", "lambda_distill": strength}
        _student(tmp_path, 0.5 + strength / 10, "distilled", **about)
    run(tmp_path, "tables")
    text = capsys.readouterr().out
    lines = text.split("## In short\n")[1]
    assert "m, `task_language_mean` in %: finetuned 50.0, distilled 50.5 to 60.0 (4 variants)." in lines
    assert "m, distilled against finetuned (4 variants): without predictions to judge by in nli." in lines
    assert set(table_of(text, "λ sweep: m")) == {f"distilled λ={strength}" for strength in ("0.05", "0.1", "0.5", "1")}
