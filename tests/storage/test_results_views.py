"""Tables compare what may be compared: each case here was once a difference between runs that differ in more."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from logitbank.storage.results import Catalogue, write_rows

Cells = Mapping[str, float]  # language -> accuracy of nli
SMALL = {
    "store_fingerprint": "aaaaaaaaaa",
    "view_fingerprint": "a1a1a1a1a1",
    "teacher": "Qwen/Qwen3-1.7B",
    "top_k": 256,
}
LARGE = {"store_fingerprint": "bbbbbbbbbb", "view_fingerprint": "b1b1b1b1b1", "teacher": "Qwen/Qwen3-8B", "top_k": 64}


def put(
    results: Path,
    name: str,
    cells: Cells,
    *,
    condition: str = "distilled",
    view: str | None = "fewshot",
    seed: int | None = 42,
    step: int | None = 1000,
    day: int = 1,
    examples_hash: str = "e",
    kind: str = "evaluation",
    **about: Any,
) -> None:
    """One evaluation of a student; `about` are further columns of `runs`."""
    identity = {"run": name, "model": "m", "condition": condition, "seed": seed, "step": step}
    defaults = {"setup": "s", "training_run": f"t-{name}", "training_set": "d", "max_steps": 1000, **SMALL}
    if view is None:
        defaults |= {"view_fingerprint": None, "teacher": None, "top_k": None}
    else:
        defaults |= {"variant": "λ=0.5", "lambda_distill": 0.5, "strategy": "fixed"}
    created = datetime.datetime(2026, 1, day, tzinfo=datetime.UTC)
    row = {**identity, "kind": kind, "view": view, **defaults, **about, "created_at": created}
    write_rows(results, "runs", [row], name)
    where = {"task": "nli", "split": "test", "method": "generate", "metric": "accuracy", "is_primary": True}
    metrics = [
        {**identity, **where, "language": language, "value": value, "examples": 500, "examples_hash": examples_hash}
        for language, value in cells.items()
    ]
    write_rows(results, "metrics", metrics, name)


def finetuned(results: Path, name: str, cells: Cells, **about: Any) -> None:
    put(results, name, cells, condition="finetuned", view=None, **about)


def rows(results: Path, sql: str) -> list[tuple[Any, ...]]:
    return [tuple(row.values()) for row in Catalogue([results]).rows(sql)]


def test_students_of_two_teachers_stay_apart_and_are_named(tmp_path: Path) -> None:
    put(tmp_path, "small", {"en": 0.6})
    put(tmp_path, "large", {"en": 0.9}, **LARGE)
    finetuned(tmp_path, "sft", {"en": 0.7})
    assert rows(tmp_path, "SELECT taught_by, value, seeds FROM cells ORDER BY taught_by") == [
        ("", 0.7, 1),
        ("Qwen3-1.7B fewshot K=256 a1a1a1", 0.6, 1),
        ("Qwen3-8B fewshot K=64 b1b1b1", 0.9, 1),
    ]
    gaps = rows(tmp_path, "SELECT taught_by, round(difference, 9) FROM gaps ORDER BY ALL")
    assert gaps == [("Qwen3-1.7B fewshot K=256 a1a1a1", -0.1), ("Qwen3-8B fewshot K=64 b1b1b1", 0.2)]


def test_two_teachers_are_not_two_seeds(tmp_path: Path) -> None:
    put(tmp_path, "small", {"en": 0.6}, seed=1)
    put(tmp_path, "large", {"en": 0.9}, seed=2, **LARGE)
    assert rows(tmp_path, "SELECT value, seeds FROM cells ORDER BY value") == [(0.6, 1), (0.9, 1)]


def test_two_views_of_one_name_stay_apart(tmp_path: Path) -> None:
    """Three demonstrations or eight: stores with the same teacher and examples, but other prompts."""
    put(tmp_path, "three", {"en": 0.6}, seed=1)
    put(tmp_path, "eight", {"en": 0.9}, seed=2, view_fingerprint="c1c1c1c1")
    assert rows(tmp_path, "SELECT value, seeds FROM cells ORDER BY value") == [(0.6, 1), (0.9, 1)]


def test_another_training_set_makes_no_gap(tmp_path: Path) -> None:
    finetuned(tmp_path, "sft", {"en": 0.7}, training_set="d1", setup="s1")
    put(tmp_path, "kd", {"en": 0.6}, training_set="d2", setup="s2")
    assert rows(tmp_path, "SELECT * FROM gaps") == []


def test_distilled_and_control_are_paired_within_one_store(tmp_path: Path) -> None:
    zeroshot = {"condition": "control", "view": "zeroshot"}
    put(tmp_path, "kd", {"en": 0.6})
    put(tmp_path, "control", {"en": 0.5}, **zeroshot, view_fingerprint="a2a2a2")
    put(tmp_path, "control-8b", {"en": 0.1}, **zeroshot, **{**LARGE, "view_fingerprint": "b2b2b2"})
    assert rows(tmp_path, "SELECT gap, round(difference, 9), subtrahend_taught_by FROM gaps") == [
        ("distilled-control", 0.1, "Qwen3-1.7B zeroshot K=256 a2a2a2")
    ]


def test_lengths_are_never_mixed(tmp_path: Path) -> None:
    finetuned(tmp_path, "sft-long", {"en": 0.8}, setup="long")
    put(tmp_path, "kd-short", {"en": 0.6}, step=200, max_steps=200, setup="short")
    assert rows(tmp_path, "SELECT * FROM gaps") == []
    put(tmp_path, "kd-long", {"en": 0.85}, setup="long")
    put(tmp_path, "kd-long-200", {"en": 0.9}, step=200, setup="long", training_run="t-kd-long")
    assert rows(tmp_path, "SELECT max_steps, step, value FROM cells WHERE condition = 'distilled' ORDER BY ALL") == [
        (200, 200, 0.6),
        (1000, 1000, 0.85),
    ]
    assert rows(tmp_path, "SELECT gap, round(difference, 9) FROM gaps") == [("distilled-finetuned", 0.05)]


def test_a_gap_is_at_one_step(tmp_path: Path) -> None:
    finetuned(tmp_path, "sft", {"en": 0.8})
    put(tmp_path, "kd-200", {"en": 0.6}, step=200)
    assert rows(tmp_path, "SELECT * FROM gaps") == []


def test_a_half_evaluated_run_shows_one_step_and_says_that_it_is_partial(tmp_path: Path) -> None:
    put(tmp_path, "kd-200", dict.fromkeys(("en", "de", "fr"), 0.5), step=200)
    put(tmp_path, "kd-1000", {"en": 0.9}, step=1000)
    (average,) = rows(tmp_path, "SELECT step, language_mean, languages, expected_languages FROM task_averages")
    assert average == (1000, 0.9, 1, 3)
    curve = rows(tmp_path, "SELECT step, language_mean, languages FROM checkpoint_curves ORDER BY step")
    assert curve == [(200, 0.5, 3), (1000, 0.9, 1)]


def test_seeds_are_averaged_at_one_step(tmp_path: Path) -> None:
    put(tmp_path, "one", {"en": 0.9}, seed=1)
    put(tmp_path, "two", {"en": 0.1}, seed=2, step=400)
    assert rows(tmp_path, "SELECT step, value, seeds FROM cells") == [(1000, 0.9, 1)]


def test_a_student_trained_again_is_not_mixed_with_the_one_before(tmp_path: Path) -> None:
    put(tmp_path, "before", {"en": 0.1, "hi": 0.1})
    put(tmp_path, "after", {"en": 0.9}, day=2)
    assert rows(tmp_path, "SELECT language_mean, languages, expected_languages FROM task_averages") == [(0.9, 1, 2)]


def test_other_examples_make_no_gap_and_no_mean(tmp_path: Path) -> None:
    finetuned(tmp_path, "sft", {"en": 0.5})
    put(tmp_path, "kd-1", {"en": 0.6}, seed=1)
    put(tmp_path, "kd-2", {"en": 0.9}, seed=2, examples_hash="another data set", day=2)
    assert rows(tmp_path, "SELECT value, seeds FROM cells WHERE condition = 'distilled'") == [(0.9, 1)]
    assert rows(tmp_path, "SELECT * FROM gaps") == []


def test_the_sweep_compares_languages_that_both_have(tmp_path: Path) -> None:
    finetuned(tmp_path, "sft", {"en": 0.5})
    for value in (0.05, 0.5):
        about = {"variant": f"λ={value:g}", "lambda_distill": value}
        put(tmp_path, f"kd-{value}", {"en": 0.5 + value, "hi": 0.1}, **about)
    sweep = rows(
        tmp_path,
        "SELECT lambda_distill, languages, round(difference_to_finetuned, 9), compared_languages FROM lambda_sweep",
    )
    assert sorted(sweep) == [(0.05, 2, 0.05, 1), (0.5, 2, 0.5, 1)]


OLD = {"training_set": None, "max_steps": None, "view_fingerprint": None, "teacher": None, "top_k": None}


def _training(results: Path, run: str, steps: int) -> None:
    row = {"run": run, "kind": "training", "model": "m", "step": steps, "training_run": run}
    write_rows(results, "runs", [{**row, "created_at": datetime.datetime.now(datetime.UTC)}], run)


def test_sweeps_of_earlier_versions_have_todays_conditions(tmp_path: Path) -> None:
    put(tmp_path, "a", {"en": 0.5}, condition="sft", view=None, **OLD)
    put(tmp_path, "b", {"en": 0.6}, condition="fewshot-fixed-lambda0.5", **OLD)
    put(tmp_path, "c", {"en": 0.4}, condition="zeroshot-fixed-lambda0.5", view="zeroshot", **OLD)
    about = {"strategy": "entropy*gradient_conflict", "variant": "entropy*gradient_conflict λ=0.5"}
    put(tmp_path, "d", {"en": 0.7}, condition="fewshot-entropy+gradient_conflict-lambda0.5", **about, **OLD)
    put(tmp_path, "e", {"en": 0.7}, condition="fewshot-mine", **OLD)
    assert rows(tmp_path, "SELECT run, condition FROM evaluations ORDER BY run") == [
        ("a", "finetuned"), ("b", "distilled"), ("c", "control"), ("d", "distilled"), ("e", "fewshot-mine"),
    ]  # fmt: skip
    sweep = rows(tmp_path, "SELECT condition, lambda_distill, round(difference_to_finetuned, 9) FROM lambda_sweep")
    assert sorted(sweep) == [("control", 0.5, -0.1), ("distilled", 0.5, 0.1)]
    gaps = rows(tmp_path, "SELECT gap, variant, round(difference, 9) FROM gaps ORDER BY ALL")
    assert gaps == [
        ("control-finetuned", "λ=0.5", -0.1),
        ("distilled-control", "λ=0.5", 0.2),
        ("distilled-finetuned", "entropy*gradient_conflict λ=0.5", 0.2),
        ("distilled-finetuned", "λ=0.5", 0.1),
    ]


@pytest.mark.parametrize("difference", ["store", "length"])
def test_rows_of_earlier_versions_are_kept_apart_by_what_they_say(tmp_path: Path, difference: str) -> None:
    """Their setup lacks store and length, but the store's fingerprint and the training run's own row have them."""
    for name, fingerprint, steps in (
        ("one", "aaaaaaaa", 1000),
        ("other", "bbbbbbbb" if difference == "store" else "aaaaaaaa", 1000 if difference == "store" else 200),
    ):
        _training(tmp_path, f"t-{name}", steps)
        about = {**OLD, "store_fingerprint": fingerprint}
        put(tmp_path, name, {"en": 0.6}, seed={"one": 1, "other": 2}[name], step=200, **about)
    finetuned(
        tmp_path, "sft", {"en": 0.5}, step=200, **{**OLD, "store_fingerprint": "aaaaaaaa", "training_run": "t-one"}
    )
    assert rows(tmp_path, "SELECT seeds FROM cells WHERE condition = 'distilled'") == [(1,), (1,)]
    assert rows(tmp_path, "SELECT round(difference, 9) FROM gaps") == [(0.1,)]


def test_published_numbers_may_come_from_several_files(tmp_path: Path) -> None:
    for run, language in (("x", "en"), ("y", "hi")):
        created = datetime.datetime.now(datetime.UTC)
        about = {"run": run, "model": "m", "condition": "base"}
        write_rows(tmp_path, "runs", [{**about, "kind": "import", "setup": "published", "created_at": created}], run)
        cell = {"task": "nli", "language": language, "split": "published", "method": "imported", "metric": "accuracy"}
        write_rows(tmp_path, "metrics", [{**about, **cell, "value": 0.5, "is_primary": True}], run)
    assert rows(tmp_path, "SELECT languages FROM task_averages") == [(2,)]
