"""logitbank import in tests: run, verified, and refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from logitbank import TeacherStore, open_store
from logitbank.__main__ import main
from logitbank.storage import verify

Import = Callable[..., TeacherStore]


def importer(base: Path, folder: Path) -> Import:
    """What imports files into a store below a folder, and opens what came of them."""

    def run(*files: str, store: str = "store", encoding: str = "exact", options: tuple[str, ...] = ()) -> TeacherStore:
        place = ["--store", str(folder / store), "--view", "theirs", "--model", str(base), "--teacher", "org/teacher"]
        main(["import", *files, *place, "--encoding", encoding, *options])
        assert verify(str(folder / store)) == []
        return open_store(str(folder / store))

    return run


def refused(capsys: pytest.CaptureFixture[str], run: Callable[[], object]) -> str:
    """What a command says that ends with a user error: one line."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        run()
    assert end.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith("error: "), said
    assert said.count("\n") == 1, said
    return said.strip()
