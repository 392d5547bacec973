"""Two processes share the cells of one evaluation; what one leaves undone, any later run does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from logitbank.evaluation import evaluate_command
from logitbank.storage.results.catalogue import Catalogue
from tests import processes
from tests.evaluation.conftest import base_overrides

ROWS = "SELECT * EXCLUDE (run) FROM predictions ORDER BY task, language, example_id"


def _arguments(results: Path, overrides: list[str], *arguments: str) -> list[str]:
    return ["--condition", "base", "--results", str(results), *arguments, *overrides]


def test_two_processes_do_all_cells_once(tiny_model: Path, mirror: Path, tmp_path: Path) -> None:
    overrides = base_overrides(tiny_model, mirror)
    alone, shared = tmp_path / "alone", tmp_path / "shared"
    environments: list[tuple[list[str], dict[str, str]]] = [
        (["--worker", "0/2"], {}),
        ([], {"RANK": "1", "WORLD_SIZE": "2", "SLURM_ARRAY_TASK_ID": "4", "SLURM_ARRAY_TASK_COUNT": "9"}),
    ]
    running = [
        processes.start("evaluate-model", *_arguments(shared, overrides, *arguments), env=more)
        for arguments, more in environments
    ]
    finished = [process.wait() for process in running]
    assert [process.returncode for process in finished] == [0, 0], finished[0].stderr + finished[1].stderr
    printed = [process.stdout for process in finished]
    assert "worker 0 of 2 (--worker): 3 of 5 cells" in printed[0]
    assert "worker 1 of 2 (RANK and WORLD_SIZE): 2 of 5 cells" in printed[1]
    cells = [{line.split()[2] for line in text.splitlines() if line.startswith("[")} for text in printed]
    assert len(cells[0]) == 3
    assert len(cells[1]) == 2
    assert not cells[0] & cells[1]
    evaluate_command.main(_arguments(alone, overrides))
    expected = Catalogue([alone]).rows(ROWS)
    assert len(expected) == 30
    assert Catalogue([shared]).rows(ROWS) == expected
    assert len(Catalogue([shared]).rows("SELECT * FROM runs")) == 1


def test_a_later_run_does_what_a_lost_worker_left(
    tiny_model: Path, mirror: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    overrides = base_overrides(tiny_model, mirror)
    evaluate_command.main(_arguments(tmp_path, overrides, "--worker", "1/3"))
    assert "[2/2]" in capsys.readouterr().out
    evaluate_command.main(_arguments(tmp_path, overrides))
    assert "2 of 5 cells are already finished, skipped" in capsys.readouterr().out
    assert len(Catalogue([tmp_path]).rows(ROWS)) == 30


def test_a_worker_that_cannot_be_is_one_line(tmp_path: Path, capsys: Any) -> None:
    with pytest.raises(SystemExit):
        evaluate_command.main(["--condition", "base", "--results", str(tmp_path), "--worker", "2/2", "model.name=m"])
    assert capsys.readouterr().err == "error: --worker: expected I/N with I from 0 to N-1, got '2/2'\n"
