"""The gap between English and the other languages."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.evaluation.test_query import run, table_of


def test_transfer_gap_of_the_study(shared: Path, tmp_path: Path, capsys: Any) -> None:
    run(tmp_path, "import", str(shared / "reference" / "xtreme_results.csv"))
    run(tmp_path, "tables")
    row = table_of(capsys.readouterr().out, "Transfer gap")["Llama-3.2-3B distilled"]
    assert (row["English"], row["other languages"], row["gap"]) == ("66.1", "58.2", "+7.9 ±?")
