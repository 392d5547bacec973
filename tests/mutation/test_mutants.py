"""The mutator makes changes that compile, differ, and touch code only."""

from __future__ import annotations

import ast

import pytest

from tests.mutation.mutants import mutants_of
from tests.mutation.run import ROOT, TARGETS

SOURCE = '''"""A docstring with 1 + 1."""

QUERY = "SELECT task, avg(value) FROM cells GROUP BY task ORDER BY value DESC"


def draw(rows: list[int], seed: int = 3) -> int:
    """Another, seed < 2."""
    if rows and min(rows) < 2:
        raise ValueError(f"{len(rows)} rows")
    return rows[hash(seed)] - 1
'''


def changes() -> set[str]:
    return {ast.unparse(ast.parse(mutant.source)) for mutant in mutants_of(SOURCE)}


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("avg(value)", "sum(value)"),
        ("DESC", "ASC"),
        ("rows and min(rows) < 2", "rows or min(rows) < 2"),
        ("min(rows)", "max(rows)"),
        ("min(rows) < 2", "min(rows) <= 2"),
        ("hash(seed)", "hash(7)"),
        ("rows[hash(seed)] - 1", "rows[hash(seed)] + 1"),
        ("rows[hash(seed)] - 1", "rows[hash(seed)] - 2"),
        ("seed: int = 3", "seed: int = 4"),
    ],
)
def test_a_change_is_made(before: str, after: str) -> None:
    assert ast.unparse(ast.parse(SOURCE.replace(before, after, 1))) in changes()


def test_each_change_is_another_program() -> None:
    found = changes()
    assert len(found) == len(mutants_of(SOURCE))
    assert ast.unparse(ast.parse(SOURCE)) not in found


def test_docstrings_and_messages_stay() -> None:
    for mutant in mutants_of(SOURCE):
        assert "A docstring with 1 + 1." in mutant.source
        assert "Another, seed < 2." in mutant.source


@pytest.mark.parametrize("name", TARGETS)
def test_a_target_names_files_and_tests_that_exist(name: str) -> None:
    for pattern in TARGETS[name].files:
        assert list(ROOT.glob(pattern)), pattern
    for path in TARGETS[name].tests:
        assert (ROOT / path).exists(), path
