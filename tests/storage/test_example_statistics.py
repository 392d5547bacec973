"""`example_statistics`: what the intervals resample, against a plain sort of the rows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from logitbank.storage.results import compaction
from logitbank.storage.results.catalogue import Catalogue
from logitbank.storage.results.rows import write_rows

CELL = ("run", "task", "language", "method")


def _write(results: Path, name: str, examples: Sequence[int], **about: Any) -> None:
    rows = [
        {
            **{"run": "r", "model": "m", "condition": "base", "task": "nli", "language": "en", "split": "test"},
            **{"method": "generate", "example_id": f"nli/{index}", "prompt_hash": "0", "demonstrations": 0},
            **{"question": "q", "output": "o", "gold": "1", "score": float(index % 3)},
            "statistics": {"correct": float(index % 3), "parse_failure": index / 7},
            **about,
        }
        for index in examples
    ]
    write_rows(results, "predictions", rows, name)


@pytest.mark.parametrize("enough", [0, 1000])
def test_numbers_stand_in_the_order_of_the_examples_hashes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, enough: int
) -> None:
    monkeypatch.setattr(compaction, "ENOUGH", enough)
    rng = np.random.default_rng(0)
    _write(tmp_path, "a", rng.permutation(50).tolist())
    _write(tmp_path, "b", rng.permutation(50).tolist(), language="hi")
    _write(tmp_path, "c", rng.permutation(9).tolist(), run="s", method="likelihood")
    _write(tmp_path, "d", [4, 4, 2], run="t")  # an example twice: in the order of the file
    for _ in range(2):
        catalogue = Catalogue([tmp_path])
        plain: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
        for row in catalogue.rows("SELECT *, hash(example_id) AS hash FROM predictions"):
            plain.setdefault(tuple(row[name] for name in CELL), []).append(row)
        found = catalogue.rows("SELECT * FROM example_statistics")
        assert {tuple(row[name] for name in CELL) for row in found} == plain.keys()
        for row in found:
            own = sorted(plain[tuple(row[name] for name in CELL)], key=lambda each: each["hash"])
            assert row["examples"] == len(own)
            assert row["hashes"] == [each["hash"] for each in own]
            assert row["names"] == [["correct", "parse_failure"]]
            assert row["numbers"] == [number for each in own for _, number in each["statistics"]]


def test_several_spellings_of_the_names_are_all_told(tmp_path: Path) -> None:
    _write(tmp_path, "a", [1, 2])
    _write(tmp_path, "b", [3], statistics={"f1": 0.5})
    rows = Catalogue([tmp_path]).rows("SELECT names FROM example_statistics")
    assert sorted(name for row in rows for name in row["names"]) == [["correct", "parse_failure"], ["f1"]]
