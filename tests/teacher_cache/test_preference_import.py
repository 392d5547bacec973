"""Logits that another program computed: which row they belong to, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from logitbank.storage import LabelStore
from logitbank.teacher_cache.build_command import main
from tests.teacher_cache import preferences
from tests.teacher_cache.preferences import DUPLICATE, FOLDS, ROWS, WITHOUT_TEXT

Logits = NDArray[np.floating]


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """No model: none is asked."""
    return ["model.name=none/such", *preferences.write_rows(tmp_path_factory.mktemp("comparisons"))]


def logits_of(row: int | str) -> list[float]:
    """What the teacher of these tests says of a row: its number can be told from it."""
    number = int(str(row).removeprefix("r"))
    return [number / 7, -number / 3, 0.5]


def whole() -> Logits:
    """(N, 3): every row of the file that has text, those included that no store keeps."""
    return np.array([logits_of(row) for row in range(ROWS) if row != WITHOUT_TEXT])


def load(store: Path, pattern: Path | str, options: list[str], *more: str) -> LabelStore:
    main(["--store", str(store), "--view", "theirs", "--logits", str(pattern), *options, *more])
    return LabelStore.open(str(store))


def check(store: LabelStore, folds: list[int]) -> None:
    """Each row of these folds has its own logits, every other row none."""
    found = store.logits("theirs")
    for row in range(len(store.train)):
        if store.train.fold[row] in folds:
            assert found[row] == pytest.approx(logits_of(store.train.pair(row).row_id))
        else:
            assert np.isnan(found[row]).all()


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_rows_are_those_of_the_file_that_have_text(
    options: list[str], tmp_path: Path, dtype: type[np.floating], capsys: pytest.CaptureFixture[str]
) -> None:
    """Rows that are merged, held out or dropped for their prompt stand in the file and are skipped."""
    np.save(tmp_path / "l.npy", whole().astype(dtype))
    store = load(tmp_path / "s", tmp_path / "l.npy", options)
    assert f"r{DUPLICATE}" not in {store.train.pair(row).row_id for row in range(len(store.train))}
    assert store.require_view("theirs") is None
    expected = np.array([logits_of(store.train.pair(row).row_id) for row in range(len(store.train))])
    assert store.logits("theirs") == pytest.approx(expected.astype(dtype), rel=1e-3 if dtype == np.float16 else 1e-6)
    assert "whether they are out of fold is not recorded" in capsys.readouterr().out
    assert not any(shard.proven for shard in store.scorers("theirs"))


def test_one_file_may_give_one_fold(options: list[str], tmp_path: Path) -> None:
    np.save(tmp_path / "l.npy", whole())
    check(load(tmp_path / "s", tmp_path / "l.npy", options, "--fold", "1"), [1])
    check(load(tmp_path / "s", tmp_path / "l.npy", options), [0, 1, 2])


def test_a_file_of_one_fold_follows_folds_json(options: list[str], tmp_path: Path) -> None:
    main(["--store", str(tmp_path / "s"), "--view", "none", *options])
    folds = json.loads((tmp_path / "s" / "folds.json").read_text())
    for fold, ids in folds.items():
        np.save(tmp_path / f"T{10 * int(fold)}.npy", np.array([logits_of(row) for row in ids]))  # T10 comes after T0
    check(load(tmp_path / "s", tmp_path / "T*.npy", options), [0, 1, 2])


def test_each_fold_may_come_from_a_file_of_all_rows(options: list[str], tmp_path: Path) -> None:
    for fold in range(FOLDS):
        np.save(tmp_path / f"T{fold}.npy", whole() + fold)
    store = load(tmp_path / "s", tmp_path / "T?.npy", options)
    expected = [
        np.array(logits_of(store.train.pair(row).row_id)) + store.train.fold[row] for row in range(len(store.train))
    ]
    assert store.logits("theirs") == pytest.approx(np.array(expected), rel=1e-6)


def test_importing_again_changes_nothing_and_other_logits_are_refused(
    options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.save(tmp_path / "l.npy", whole())
    expected = load(tmp_path / "s", tmp_path / "l.npy", options).logits("theirs")
    assert np.array_equal(load(tmp_path / "s", tmp_path / "l.npy", options).logits("theirs"), expected)
    np.save(tmp_path / "l.npy", whole() + 1)
    with pytest.raises(SystemExit):
        load(tmp_path / "s", tmp_path / "l.npy", options)
    assert "--view theirs: fold 0 was scored by" in capsys.readouterr().err


def _with(changes: dict[int, list[float]]) -> Logits:
    array = whole()
    for row, values in changes.items():
        array[row] = values
    return array


@pytest.mark.parametrize(
    ("array", "says"),
    [
        (np.zeros((ROWS, 3)), f"expected {ROWS - 1} rows (preference.train in its order; 1 row without text dropped"),
        (np.zeros((ROWS - 1, 2)), f"got ({ROWS - 1}, 2) of float64"),
        (np.zeros(ROWS - 1), f"got ({ROWS - 1},) of float64"),
        (np.zeros((ROWS - 1, 3), dtype=np.int64), "expected floats"),
        (_with({3: [0, float("nan"), 0]}), "expected finite numbers, got [0.0, nan, 0.0] for row r3 (1 such row)"),
        (_with({3: [1e300, 0, 0]}), "expected finite numbers"),
        (np.full((ROWS - 1, 3), 1 / 3), "expected raw logits, got probabilities"),
        (np.array([{"a": 1}]), "cannot be read: Object arrays cannot be loaded"),
    ],
)
def test_what_is_no_logits_of_these_rows_is_one_line(
    options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], array: NDArray[np.generic], says: str
) -> None:
    np.save(tmp_path / "l.npy", array, allow_pickle=True)
    with pytest.raises(SystemExit) as stop:
        load(tmp_path / "s", tmp_path / "l.npy", options)
    assert stop.value.code == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert line.startswith(f"error: --logits: {tmp_path / 'l.npy'}")
    assert says in line
    if "dropped" in says:
        assert f"(r{WITHOUT_TEXT})" in line
    assert not (tmp_path / "s").exists()


def test_files_are_one_or_one_a_fold(options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in "ab":
        np.save(tmp_path / f"{name}.npy", whole())
    for pattern, says in (
        ("*.npy", f"expected one file, or one for each of {FOLDS} folds, got 2"),
        ("c*.npy", "no file matches"),
    ):
        with pytest.raises(SystemExit):
            load(tmp_path / "s", tmp_path / pattern, options)
        assert says in capsys.readouterr().err
