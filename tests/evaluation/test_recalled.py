"""Replicates that another process made: the same bits, and never those of other files or other code."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

import logitbank.storage
from logitbank.evaluation.report import recalled
from logitbank.evaluation.report.intervals import Replicates, load_replicates
from logitbank.evaluation.report.recalled import as_table, from_table, recall_replicates
from logitbank.storage.results import remembered
from logitbank.storage.results.catalogue import Catalogue
from tests.evaluation.test_intervals import add_predictions, correct


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two conditions, two steps of one, two seeds."""
    monkeypatch.setattr(remembered, "ENOUGH", 4)
    right = correct([True, False, True, True])
    add_predictions(tmp_path, ("nli", "en"), right)
    for seed in (0, 1):
        for step in (10, 20):
            own = correct([True, step == 20, seed == 0, True])
            add_predictions(tmp_path, ("nli", "en"), own, condition="finetuned", step=step, seed=seed)
    return tmp_path


def same(one: Replicates, other: Replicates) -> None:
    for field in dataclasses.fields(Replicates):
        ours, theirs = getattr(one, field.name), getattr(other, field.name)
        assert list(ours) == list(theirs) if isinstance(ours, dict) else ours == theirs, field.name
        if isinstance(ours, dict):
            assert all(np.array_equal(ours[key], theirs[key]) for key in ours), field.name


def count_made(monkeypatch: pytest.MonkeyPatch) -> list[Catalogue]:
    made: list[Catalogue] = []

    def counting(catalogue: Catalogue, metrics: object) -> Replicates:
        made.append(catalogue)
        return load_replicates(catalogue, ())

    monkeypatch.setattr(recalled, "load_replicates", counting)
    return made


def test_every_field_comes_back_with_the_same_bits() -> None:
    cell, other = ("m", "base", "", "", "", "nli", "en"), ("m", "b", "", "λ=0.1", "t", "pos", "hi")
    made = Replicates(
        by_cell={(cell, "accuracy"): np.array([0.1, 1 / 3]), (other, "kl large"): np.array([np.pi, 0.0])},
        examples={cell: "digest", other: "another"},
        sizes={cell: 7, other: 10**9},
        by_step={(cell, 20): np.array([0.7, 0.2])},
        continuous={other},
        values={(other, "log_loss"): 1e-17},
    )
    same(from_table(as_table(made)), made)
    same(from_table(as_table(Replicates())), Replicates())


def test_another_process_recalls_what_is_made_of_the_files(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = count_made(monkeypatch)
    expected = load_replicates(Catalogue([results]))
    assert expected.by_step
    for _ in range(2):
        same(recall_replicates(Catalogue([results])), expected)
    assert len(made) == 1
    add_predictions(results, ("nli", "en"), correct([False, False, True, True]), seed=1)
    same(recall_replicates(Catalogue([results])), load_replicates(Catalogue([results])))
    assert len(made) == 2


def test_other_code_makes_them_again(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = count_made(monkeypatch)
    other: ModuleType = logitbank.storage
    for code in (recalled.CODE, (other,), recalled.CODE):
        monkeypatch.setattr(recalled, "CODE", code)
        recall_replicates(Catalogue([results]))
    assert len(made) == 2


def test_those_of_tasks_of_ones_own_are_made_each_time(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their metrics may change without any file."""
    made = count_made(monkeypatch)
    monkeypatch.setattr(recalled.TASKS, "shipped", ("pos",))
    for _ in range(2):
        recall_replicates(Catalogue([results]))
    assert len(made) == 2
