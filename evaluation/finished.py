"""What an evaluation left in the results: which of its cells are finished, and whether they still count."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from logitbank.errors import StoreError
from logitbank.evaluation.identity import Identity
from logitbank.evaluation.questions import Contents
from logitbank.storage.results import read_rows, write_rows

Place = tuple[str, str]  # task, language


def cell_name(identity: Identity, cell: Place) -> str:
    """Of the files of a cell."""
    return f"{identity.run}@{cell[0]}.{cell[1]}"


def latest_generation(results: Path, identity: Identity, contents: Mapping[Place, Contents]) -> Identity:
    """The latest generation of an evaluation, or the next one where a finished cell answers what is asked no more.

    Data sets change under the same name. Result files are never rewritten, so the whole evaluation is then done
    under a new name, and tables use the newest.

    Args:
        results: directory of the result rows.
        identity: of the evaluation.
        contents: what each of its cells asks now.
    """
    number = 1
    while read_rows(results, "runs", identity.generation(number + 1).run) is not None:
        number += 1
    latest = identity.generation(number)
    for cell, asked in contents.items():
        rows = read_rows(results, "metrics", cell_name(latest, cell))
        if rows and (rows[0]["examples_hash"], rows[0]["demonstrations_hash"]) != (
            asked.examples_hash,
            asked.demonstrations_hash,
        ):
            changed = _what_changed(rows[0]["examples_hash"], asked.examples_hash, cell)
            print(f"{identity.columns['condition']}: {changed}; evaluating all cells again")
            return identity.generation(number + 1)
    return latest


def _what_changed(before: str | None, now: str, cell: Place) -> str:
    """Why a finished cell does not count, to read: the source of a task from outside, or its examples."""
    if before is not None and before != now and before.partition("+")[0] == now.partition("+")[0]:
        return f"the source of the task {cell[0]} has changed"
    return f"the examples of {cell[0]}/{cell[1]} have changed"


def write_run(results: Path, identity: Identity) -> None:
    """The row of `runs`, unless it is there: it holds the time at which the first worker began.

    Not before the cell is encoded: of what cannot be opened nothing is left; and not after hours of answers.
    """
    if read_rows(results, "runs", identity.run) is not None:
        return
    try:
        write_rows(results, "runs", [identity.run_row], identity.run)
    except StoreError:  # another worker was faster, with another time
        if read_rows(results, "runs", identity.run) is None:
            raise
