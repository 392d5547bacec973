"""docs/results.md: every worked query runs, every view and column is described."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from logitbank.storage.results.catalogue import Catalogue
from logitbank.storage.results.rows import SCHEMAS
from logitbank.storage.results.store_rows import TOKEN_SCHEMA
from logitbank.storage.results.views import VIEWS
from tests.evaluation.conftest import add_run
from tests.evaluation.test_intervals import add_predictions, correct
from tests.storage import stores

DOCUMENT = Path(__file__).parents[2] / "docs" / "results.md"
TEXT = DOCUMENT.read_text(encoding="utf-8") if DOCUMENT.exists() else ""
QUERIES = re.findall(r"```sql\n(.*?)```", TEXT, re.DOTALL)


@pytest.fixture(scope="module")
def catalogue(tmp_path_factory: pytest.TempPathFactory) -> Catalogue:
    root = tmp_path_factory.mktemp("docs")
    stores.build(str(root / "store"), stores.records(30))
    for seed in (1, 2):
        add_run(root / "r", {("nli", "en"): 0.5 + seed / 10}, condition="finetuned", seed=seed)
    add_predictions(root / "r", ("nli", "hi"), correct([True, True, False]), condition="fewshot")
    add_predictions(root / "r", ("nli", "hi"), correct([False, True, False]), condition="distilled")
    return Catalogue([root / "r"], [str(root / "store")])


def test_there_are_ten_queries() -> None:
    assert len(QUERIES) == 10


@pytest.mark.parametrize("number", range(10))
def test_every_query_runs(catalogue: Catalogue, number: int) -> None:
    assert catalogue.query(QUERIES[number]).num_columns > 1


def test_the_queries_that_have_something_to_show_show_it(catalogue: Catalogue) -> None:
    spread = next(query for query in QUERIES if "deviation" in query)
    assert [row["seeds"] for row in catalogue.rows(spread)] == [2]
    quartiles = next(query for query in QUERIES if "ntile" in query)
    assert len(catalogue.rows(quartiles)) == 8


def test_every_table_view_and_column_is_described() -> None:
    for name in [*SCHEMAS, *VIEWS, "cache_tokens", "cache_examples"]:
        assert f"`{name}`" in TEXT, f"docs/results.md lacks the view {name}"
    for schema in [*SCHEMAS.values(), TOKEN_SCHEMA]:
        for column in schema.names:
            assert f"`{column}`" in TEXT, f"docs/results.md lacks the column {column}"
