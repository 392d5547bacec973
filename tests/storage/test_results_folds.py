"""Students that leave out different folds are one series: averaged on the same rows, pooled on their own folds."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

import pytest

from logitbank.storage.results import Catalogue, write_rows

METRICS = ("log_loss", "accuracy", "brier", "ece")


def add(
    results: Path, value: float, *, condition: str = "distilled", seed: int = 1, fold: int | None = None,
    split: str = "test", step: int = 100, checkpoint: str = "out/final", examples: int = 10, asked: str = "e",
    day: int = 1, max_steps: int = 100,
) -> str:  # fmt: skip
    """Rows of one evaluation of a student of classes: every metric has the same value."""
    run = f"{condition}-{seed}-{fold}-{split}-{step}-{Path(checkpoint).name}-{asked}"
    identity = {"run": run, "model": "m", "condition": condition, "seed": seed, "step": step, "checkpoint": checkpoint}
    trained = {"setup": split, "held_out_fold": fold, "training_run": f"t-{condition}-{seed}-{fold}"}
    created = datetime.datetime(2026, 1, day, tzinfo=datetime.UTC)
    write_rows(results, "runs", [{**identity, **trained, "kind": "evaluation", "max_steps": max_steps,
                                  "created_at": created}], run)  # fmt: skip
    where = {"task": "preference", "language": "und", "split": split, "method": "classify"}
    rows = [
        {**identity, **where, "metric": metric, "value": value, "is_primary": metric == "log_loss",
         "examples": examples, "examples_hash": asked}
        for metric in METRICS
    ]  # fmt: skip
    write_rows(results, "metrics", rows, run)
    return run


def cells(results: Path, metric: str = "log_loss") -> dict[str, dict[str, Any]]:
    """Rows of `cells` by condition."""
    found = Catalogue([results]).rows(f"SELECT * FROM cells WHERE metric = '{metric}'")
    assert len({(row["condition"], row["setup"]) for row in found}) == len(found), "one cell for each series"
    return {row["condition"]: row for row in found}


def test_on_the_same_rows_a_cell_is_the_mean_over_folds_and_seeds(tmp_path: Path) -> None:
    values = {(seed, fold): 1 + seed / 10 + fold / 100 for seed in (1, 2) for fold in (0, 1, 2)}
    for (seed, fold), value in values.items():
        add(tmp_path, value, seed=seed, fold=fold)
    cell = cells(tmp_path)["distilled"]
    assert cell["value"] == pytest.approx(sum(values.values()) / 6)
    assert (cell["seeds"], cell["folds"], cell["examples"]) == (2, 3, 10)
    assert cells(tmp_path, "ece")["distilled"]["value"] == pytest.approx(sum(values.values()) / 6)


def test_held_out_folds_are_pooled_by_their_rows(tmp_path: Path) -> None:
    sizes, values = (10, 30, 60), {1: (1.0, 1.1, 0.9), 2: (0.8, 1.0, 1.2)}
    for seed, own in values.items():
        for fold, (size, value) in enumerate(zip(sizes, own, strict=True)):
            add(tmp_path, value, seed=seed, fold=fold, split="held_out", examples=size, asked=f"e{fold}")
    pooled = [sum(n * v for n, v in zip(sizes, own, strict=True)) / 100 for own in values.values()]
    cell = cells(tmp_path)["distilled"]
    assert cell["value"] == pytest.approx(sum(pooled) / 2)
    assert (cell["seeds"], cell["folds"], cell["examples"]) == (2, 3, 100)
    assert cells(tmp_path, "ece") == {}, "a calibration error is no mean over rows"


def test_a_seed_with_fewer_held_out_folds_does_not_count(tmp_path: Path) -> None:
    for seed, folds in ((1, (0, 1)), (2, (0,))):
        for fold in folds:
            add(tmp_path, float(seed), seed=seed, fold=fold, split="held_out", asked=f"e{fold}")
    cell = cells(tmp_path)["distilled"]
    assert (cell["value"], cell["seeds"], cell["folds"]) == (1.0, 1, 2)


def test_held_out_scores_are_compared_over_the_same_folds_alone(tmp_path: Path) -> None:
    for condition, folds in (("distilled", (0, 1)), ("finetuned", (0,))):
        for fold in folds:
            add(tmp_path, 1.0, condition=condition, fold=fold, split="held_out", asked=f"e{fold}")
    assert Catalogue([tmp_path]).rows("SELECT * FROM gaps") == []
    add(tmp_path, 1.5, condition="finetuned", fold=1, split="held_out", asked="e1")
    gaps = Catalogue([tmp_path]).rows("SELECT gap, difference FROM gaps WHERE is_primary")
    assert gaps == [{"gap": "distilled-finetuned", "difference": -0.25}]


def test_a_fold_whose_rows_changed_counts_with_its_newest(tmp_path: Path) -> None:
    add(tmp_path, 1.0, fold=0, split="held_out", asked="old")
    add(tmp_path, 2.0, fold=0, split="held_out", asked="new", day=2)
    add(tmp_path, 4.0, fold=1, split="held_out", asked="other", day=2)
    assert cells(tmp_path)["distilled"]["value"] == 3.0


def test_each_student_counts_at_its_best_checkpoint_else_at_its_last_step(tmp_path: Path) -> None:
    for fold, best in ((0, 40), (1, 60)):
        add(tmp_path, 1.0 + fold, fold=fold, step=best, checkpoint=f"out/{fold}/best")
        add(tmp_path, 9.0, fold=fold, step=100)
    for fold, last in ((0, 98), (1, 100)):  # folds of different sizes, trained for whole epochs
        add(tmp_path, 5.0, condition="finetuned", fold=fold, step=50, checkpoint="out/checkpoint-50")
        add(tmp_path, 2.0 + fold, condition="finetuned", fold=fold, step=last, max_steps=last)
    found = cells(tmp_path)
    assert (found["distilled"]["value"], found["distilled"]["step"]) == (1.5, 60)
    assert (found["finetuned"]["value"], found["finetuned"]["step"]) == (2.5, 100)
    (gap,) = Catalogue([tmp_path]).rows("SELECT difference FROM gaps WHERE is_primary")
    assert gap["difference"] == -1.0


def test_a_curve_has_the_steps_at_which_all_folds_were_evaluated(tmp_path: Path) -> None:
    for fold, steps in ((0, (50, 100)), (1, (50, 80, 100))):
        for step in steps:
            add(tmp_path, step + fold, fold=fold, step=step, checkpoint=f"out/checkpoint-{step}")
    curve = Catalogue([tmp_path]).rows("SELECT step, language_mean FROM checkpoint_curves ORDER BY step")
    assert curve == [{"step": 50, "language_mean": 50.5}, {"step": 100, "language_mean": 100.5}]


def test_probabilities_are_averaged_apart_from_answers(tmp_path: Path) -> None:
    add(tmp_path, 1.0)
    identity = {"run": "a", "model": "m", "condition": "distilled", "seed": 1, "step": 100}
    created = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
    write_rows(tmp_path, "runs", [{**identity, "kind": "evaluation", "setup": "test", "created_at": created}], "a")
    where = {"task": "nli", "language": "en", "split": "test", "method": "generate"}
    row = {**identity, **where, "metric": "accuracy", "value": 0.5, "is_primary": True}
    write_rows(tmp_path, "metrics", [row], "a")
    found = Catalogue([tmp_path]).rows("SELECT method, task_mean, expected_tasks, expected_cells FROM averages")
    assert sorted(tuple(row.values()) for row in found) == [("classify", 1.0, 1, 1), ("generate", 0.5, 1, 1)]
