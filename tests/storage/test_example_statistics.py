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


def _write(
    results: Path, name: str, examples: Sequence[int], each: Sequence[dict[str, Any]] | None = None, **about: Any
) -> None:
    rows = [
        {
            **{"run": "r", "model": "m", "condition": "base", "task": "nli", "language": "en", "split": "test"},
            **{"method": "generate", "example_id": f"nli/{index}", "prompt_hash": "0", "demonstrations": 0},
            **{"question": "q", "output": "o", "gold": "1", "score": float(index % 3)},
            "statistics": {"correct": float(index % 3), "parse_failure": index / 7},
            **about,
            **own,
        }
        for index, own in zip(examples, each or [{}] * len(examples), strict=True)
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


def test_clusters_stand_beside_their_examples(tmp_path: Path) -> None:
    clusters = ["p", "q", None, "p", None, "r"]
    rows = [{"example_id": f"nli/{index}", "cluster": cluster} for index, cluster in enumerate(clusters)]
    for run, own in (("mixed", rows), ("none", [{**row, "cluster": None} for row in rows])):
        _write(tmp_path, run, [0] * len(own), run=run, each=own)
    catalogue = Catalogue([tmp_path])
    plain = catalogue.rows("SELECT run, hash(example_id) AS hash, cluster FROM predictions ORDER BY hash")
    found = {row["run"]: row for row in catalogue.rows("SELECT * FROM example_statistics")}
    assert found["none"]["clusters"] is None
    assert len(set(found["mixed"]["clusters"])) == 5, "an example of no cluster is one of its own"
    expected = [row["cluster"] or row["hash"] for row in plain if row["run"] == "mixed"]
    pairs = set(zip(found["mixed"]["clusters"], expected, strict=True))
    assert len(pairs) == 5, f"{pairs}: each cluster has one number"


def test_several_spellings_of_the_names_are_all_told(tmp_path: Path) -> None:
    _write(tmp_path, "a", [1, 2])
    _write(tmp_path, "b", [3], statistics={"f1": 0.5})
    rows = Catalogue([tmp_path]).rows("SELECT names FROM example_statistics")
    assert sorted(name for row in rows for name in row["names"]) == [["correct", "parse_failure"], ["f1"]]
