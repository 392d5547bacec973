"""Tables along training: checkpoint curves, λ sweep, learned λ, cross-entropies."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

from logitbank.storage.results.rows import write_rows
from tests.evaluation.conftest import add_run
from tests.evaluation.test_query import run, table_of


def _tables(results: Path, capsys: Any) -> str:
    run(results, "tables")
    return str(capsys.readouterr().out)


def test_checkpoint_curves_have_a_column_for_each_step(tmp_path: Path, capsys: Any) -> None:
    for step, value in ((200, 0.3), (1000, 0.6), (400, 0.5)):
        add_run(tmp_path, {("gsm8k", "en"): value}, condition="finetuned", step=step)
    add_run(tmp_path, {("gsm8k", "en"): 0.55}, condition="distilled", step=400)
    rows = table_of(_tables(tmp_path, capsys), "Checkpoints: gsm8k (accuracy)")
    assert rows == {
        "m distilled": {"step 200": "—", "step 400": "55.0", "step 1000": "—"},
        "m finetuned": {"step 200": "30.0", "step 400": "50.0", "step 1000": "60.0"},
    }


def test_lambda_sweep_compares_with_finetuned(tmp_path: Path, capsys: Any) -> None:
    add_run(tmp_path, {("nli", "en"): 0.5}, condition="finetuned")
    for value, score in ((0.05, 0.6), (0.5, 0.4)):
        add_run(tmp_path, {("nli", "en"): score}, condition="distilled", variant=f"λ={value:g}", lambda_distill=value)
    add_run(tmp_path, {("nli", "en"): 0.7}, condition="distilled", variant="meta λ=0.5", lambda_distill=0.5)
    rows = table_of(_tables(tmp_path, capsys), "λ sweep: m")
    assert rows == {
        "distilled λ=0.05": {"nli": "60.0", "nli −finetuned": "+10.0 ±?"},
        "distilled λ=0.5": {"nli": "40.0", "nli −finetuned": "-10.0 ±?"},
    }


def test_training_ends_show_learned_lambda_and_both_cross_entropies(tmp_path: Path, capsys: Any) -> None:
    add_run(tmp_path, {("nli", "en"): 0.5})
    log = []
    for step, values in ((10, (0.9, 0.4, 0.50)), (20, (0.3, 0.35, 0.45))):
        for metric, value in zip(("student_ce", "teacher_ce", "lambda"), values, strict=True):
            for task in ("all", "nli"):
                row = {"run": "t", "model": "m", "condition": "distilled", "view": "fewshot", "seed": 1}
                log.append({**row, "step": step, "task": task, "metric": metric, "value": value})
    write_rows(tmp_path, "training_log", log, "t")
    about = {"run": "t", "kind": "training", "model": "m", "strategy": "meta", "lambda_distill": 0.5}
    write_rows(tmp_path, "runs", [{**about, "created_at": datetime.datetime.now(datetime.UTC)}], "t")
    text = _tables(tmp_path, capsys)
    learned = table_of(text, "λ at the end of training")["t"]
    assert (learned["strategy"], learned["configured λ"], learned["nli"]) == ("meta", "0.5", "0.450")
    losses = table_of(text, "Student and teacher cross-entropy")["m distilled"]
    assert (losses["step"], losses["student CE"], losses["teacher CE"], losses["KD"]) == ("20", "0.3000", "0.3500", "—")
