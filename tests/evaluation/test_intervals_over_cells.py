"""Intervals over several cells: the same combination of every draw, and none where a cell has no predictions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from logitbank.evaluation.report import intervals
from logitbank.evaluation.report.intervals import CellKey, Interval, Replicates, interval, load_replicates
from logitbank.storage.results.catalogue import Catalogue
from logitbank.storage.results.memory import Memory
from tests.evaluation.test_intervals import add_predictions, correct

CELLS: dict[str, CellKey] = {
    name: ("m", "distilled", *name.split("-")) for name in ("nli-en", "nli-hi", "nli-de", "qa-en", "qa-hi")
}
METRIC = {"nli": "accuracy", "qa": "f1"}
DRAWN = {name: np.random.default_rng(number).uniform(0.2, 0.4 + number / 10, 1000) for number, name in enumerate(CELLS)}


@pytest.fixture
def replicates() -> Replicates:
    made = Replicates()
    for name, cell in CELLS.items():
        made.by_cell[cell, METRIC[cell[-2]]] = DRAWN[name]
        made.by_step[cell, 200] = DRAWN[name] / 2
        made.note(cell, "digest", 100)
    return made


def cells(*names: str) -> list[CellKey]:
    return [CELLS[name] for name in names]


def same(found: Interval | None, expected: np.ndarray) -> bool:
    assert found is not None
    low, high = np.quantile(expected, [0.025, 0.975])
    return (found.low, found.high) == pytest.approx((low, high), abs=1e-12)


def test_a_mean_over_cells(replicates: Replicates) -> None:
    mean = (DRAWN["nli-en"] + DRAWN["nli-hi"] + DRAWN["qa-en"]) / 3
    assert same(replicates.average(cells("nli-en", "nli-hi", "qa-en"), METRIC), mean)
    assert same(replicates.cell(CELLS["nli-en"], "accuracy"), DRAWN["nli-en"])
    assert replicates.average([], METRIC) is None


def test_a_mean_over_tasks_counts_each_task_once(replicates: Replicates) -> None:
    nli = (DRAWN["nli-en"] + DRAWN["nli-hi"] + DRAWN["nli-de"]) / 3
    found = replicates.task_mean(cells("nli-en", "qa-en", "nli-hi", "nli-de"), METRIC)
    assert same(found, (nli + DRAWN["qa-en"]) / 2)


def test_a_contrast_is_of_means(replicates: Replicates) -> None:
    found = replicates.contrast(cells("nli-en", "qa-en"), cells("nli-hi", "nli-de", "qa-hi"), METRIC)
    english = (DRAWN["nli-en"] + DRAWN["qa-en"]) / 2
    others = (DRAWN["nli-hi"] + DRAWN["nli-de"] + DRAWN["qa-hi"]) / 3
    assert same(found, english - others)


def test_one_training_step(replicates: Replicates) -> None:
    assert same(replicates.at_step(cells("nli-en", "qa-hi"), 200), (DRAWN["nli-en"] + DRAWN["qa-hi"]) / 4)
    assert replicates.at_step(cells("nli-en"), 400) is None


@pytest.mark.parametrize("missing", ["nli-en", "nli-hi"])
def test_a_cell_without_predictions_leaves_no_interval(replicates: Replicates, missing: str) -> None:
    del replicates.by_cell[CELLS[missing], "accuracy"]
    both = cells("nli-en", "nli-hi")
    assert replicates.cell(CELLS[missing], "accuracy") is None
    assert replicates.average(both, METRIC) is None
    assert replicates.task_mean(both, METRIC) is None
    assert replicates.contrast([*both, CELLS["qa-en"]], cells("nli-de"), METRIC) is None
    assert replicates.contrast(cells("nli-de"), [*both, CELLS["qa-en"]], METRIC) is None
    assert replicates.difference([(both[0], both[1])], "accuracy") is None


def test_no_difference_between_cells_that_were_asked_other_examples(replicates: Replicates) -> None:
    pair = (CELLS["nli-en"], CELLS["nli-hi"])
    assert replicates.difference([pair], "accuracy") is not None
    replicates.note(CELLS["nli-hi"], "other", 100)
    assert replicates.difference([pair], "accuracy") is None
    assert replicates.difference([], "accuracy") is None


def test_an_interval_says_whether_a_difference_is_resolved() -> None:
    found = interval(np.linspace(0.0, 1.0, 1001))
    assert (found.low, found.high, found.half_width) == pytest.approx((0.025, 0.975, 0.475))
    assert Interval(0.1, 0.2).excludes_zero
    assert Interval(-0.2, -0.1).excludes_zero
    assert not Interval(-0.1, 0.2).excludes_zero
    assert not Interval(0.0, 0.2).excludes_zero
    assert not Interval(-0.2, 0.0).excludes_zero


def test_replicates_are_the_same_in_batches_in_blocks_and_over_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(3)
    for seed in range(3):
        for condition in ("finetuned", "distilled"):
            for language, examples in (("en", 40), ("hi", 40), ("de", 25)):
                answers = correct(rng.random(examples) < 0.7)
                add_predictions(tmp_path, ("nli", language), answers, condition=condition, seed=seed)
    expected = load_replicates(Catalogue([tmp_path]))
    assert len(expected.by_cell) == 6
    monkeypatch.setattr(Memory, "rows", property(lambda memory: 1))  # one cell at a time
    monkeypatch.setattr(intervals, "MOST_COUNTS", 40 * 64)  # 64 draws at a time
    _split_files(tmp_path)
    found = load_replicates(Catalogue([tmp_path]))
    assert found.examples == expected.examples
    assert found.sizes == expected.sizes
    for key, values in expected.by_cell.items():
        assert np.array_equal(found.by_cell[key], values), key


def _split_files(results: Path) -> None:
    """Each cell's predictions into two files."""
    for path in (results / "predictions").glob("*.parquet"):
        table = pq.ParquetFile(path).read()
        for part, rows in (("a", table.slice(0, 11)), ("b", table.slice(11))):
            pq.write_table(rows, path.with_name(f"{path.stem}.{part}.parquet"))
        path.unlink()
