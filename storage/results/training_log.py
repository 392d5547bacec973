"""The log of a training run: one file for each stretch between two log writes, named by its last step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from logitbank.errors import OutputError
from logitbank.storage.results.rows import file_of, write_rows


def write_training_log(results_dir: str | Path, run: str, step: int, rows: Sequence[Mapping[str, Any]]) -> Path:
    """Write the rows of `training_log` of one run up to a step that no earlier call wrote; see `write_rows`."""
    return write_rows(results_dir, "training_log", rows, f"{run}.step-{step:07d}")


def withdraw_later_rows(results_dir: str | Path, run: str, step: int) -> None:
    """Delete a training run's own log files of steps after `step`, and its row of `runs`: a resume writes them anew.

    These are the only result files that are ever deleted.

    Raises:
        OutputError: a file that cannot be deleted.
    """
    finished = file_of(results_dir, "runs", run)
    logs = (Path(results_dir) / "training_log").glob(f"{run}.step-*.parquet")
    for path in [finished, *(path for path in logs if int(path.stem.rpartition("-")[2]) > step)]:
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise OutputError(f"--results: cannot delete {path}: {error.strerror}") from None
