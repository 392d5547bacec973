"""docs/results.md: every worked query runs, every view and column is described."""

from __future__ import annotations

import datetime
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from logitbank.storage.results.catalogue import Catalogue
from logitbank.storage.results.label_rows import LABEL_SCHEMA
from logitbank.storage.results.rows import SCHEMAS, write_rows
from logitbank.storage.results.store_rows import TOKEN_SCHEMA
from logitbank.storage.results.views import VIEWS
from tests.evaluation.class_rows import add_class_run, labels, softmax
from tests.evaluation.conftest import add_run
from tests.evaluation.test_intervals import add_predictions, correct
from tests.storage import label_stores, stores

DOCUMENT = Path(__file__).parents[2] / "docs" / "results.md"
TEXT = DOCUMENT.read_text(encoding="utf-8") if DOCUMENT.exists() else ""
QUERIES = re.findall(r"```sql\n(.*?)```", TEXT, re.DOTALL)


@pytest.fixture(scope="module")
def catalogue(tmp_path_factory: pytest.TempPathFactory) -> Catalogue:
    root = tmp_path_factory.mktemp("docs")
    stores.build(str(root / "store"), stores.records(30))
    label_stores.build(str(root / "labels"))
    results = root / "r"
    for seed in (1, 2):
        add_run(results, {("nli", "en"): 0.5 + seed / 10}, condition="finetuned", seed=seed)
    add_predictions(results, ("nli", "hi"), correct([True, True, False]), condition="fewshot")
    name = add_predictions(results, ("nli", "hi"), correct([False, True, False]), condition="distilled")
    unread = {"run": name, "model": "m", "condition": "distilled", "seed": 42, "task": "nli", "language": "hi"}
    unread |= {"split": "test", "method": "generate", "metric": "parse_failure", "value": 0.2, "is_primary": False}
    write_rows(results, "metrics", [unread], "unread")
    log = [
        {"run": "t", "model": "m", "condition": "distilled", "step": step, "task": "all", "metric": metric, "value": v}
        for step, values in ((10, (0.9, 0.4)), (20, (0.3, 0.4)))
        for metric, v in zip(("student_ce", "teacher_ce"), values, strict=True)
    ]
    write_rows(results, "training_log", log, "t")
    config = json.dumps({"training": {"learning_rate": 2e-4}})
    trained = {
        "run": "t",
        "kind": "training",
        "model": "m",
        "config": config,
        "versions": json.dumps({"torch": "2.13"}),
    }
    write_rows(results, "runs", [{**trained, "created_at": datetime.datetime(2026, 2, 1, tzinfo=datetime.UTC)}], "t")
    return Catalogue([results], [str(root / "store"), str(root / "labels")])


def answer(catalogue: Catalogue, heading: str) -> list[dict[str, Any]]:
    """The rows of the query below the line that begins like this."""
    (query,) = re.findall(rf"^{re.escape(heading)}.*?```sql\n(.*?)```", TEXT, re.DOTALL | re.MULTILINE)
    return catalogue.rows(query)


def test_there_are_thirteen_queries() -> None:
    assert len(QUERIES) == 13
    assert "## Thirteen queries" in TEXT


def test_the_query_of_class_probabilities(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    probabilities, targets = softmax(rng.normal(size=(8, 3))), labels(rng, 8)
    add_class_run(tmp_path, probabilities, targets)
    add_class_run(tmp_path, probabilities, None, condition="unlabelled")
    (row,) = answer(Catalogue([tmp_path]), "How much each class probability")
    off = (probabilities - targets).mean(axis=0)
    assert [row[name] for name in ("model_a", "model_b", "tie")] == pytest.approx(off.tolist(), abs=5.1e-5)
    assert (row["condition"], row["split"], row["comparisons"]) == ("distilled", "test", 8)


def test_the_query_of_conversations(tmp_path: Path) -> None:
    shared = {"run": "r", "model": "m", "condition": "distilled", "task": "chat", "language": "und", "split": "test"}
    shared |= {"method": "teacher_forced", "prompt_hash": "p", "demonstrations": 0, "question": "{}", "gold": "{}"}
    sums = {"tokens": 4.0, "negative_log_likelihood": 6.0, "correct_tokens": 2.0, "agreeing_tokens": 1.0}
    rows = [
        {**shared, "example_id": name, "output": name, "score": 0.5, "statistics": {**sums, **own}}
        for name, own in (
            ("near", {"kl": 0.5, "compared_tokens": 4.0}),
            ("far", {"kl": 6.0, "compared_tokens": 3.0}),
            ("alone", {}),
        )
    ]
    write_rows(tmp_path, "predictions", rows, "r")
    found = answer(Catalogue([tmp_path]), "How far each student's conversations")
    assert [(row["example_id"], row["kl"], row["cross_entropy"]) for row in found] == [
        ("far", 2.0, 1.5),
        ("near", 0.125, 1.5),
    ]


def test_the_queries_of_scores(catalogue: Catalogue) -> None:
    averages = {row["condition"]: row for row in answer(catalogue, "Averages of every model")}
    assert {name: row["task_mean"] for name, row in averages.items()} == {
        "finetuned": 65.0,
        "fewshot": 66.7,
        "distilled": 33.3,
    }
    assert averages["distilled"]["cells"] == 1
    assert averages["distilled"]["expected_cells"] == 2
    grid = {row["condition"]: (row["en"], row["hi"]) for row in answer(catalogue, "One task as a grid")}
    assert grid == {"finetuned": (65.0, None), "fewshot": (None, 66.7), "distilled": (None, 33.3)}
    (spread,) = answer(catalogue, "The spread of seeds")
    assert (spread["seeds"], spread["lowest"], spread["highest"]) == (2, 0.6, 0.7)
    assert spread["deviation"] == pytest.approx(0.1 / 2**0.5)


def test_the_queries_of_predictions(catalogue: Catalogue) -> None:
    (unread,) = answer(catalogue, "Cells whose answers")
    assert (unread["condition"], unread["language"], unread["parse_failure"]) == ("distilled", "hi", 0.2)
    (lost,) = answer(catalogue, "Examples that the few-shot model knew")
    assert lost["example_id"] == "nli/hi/test/0"
    (wrong,) = answer(catalogue, "Which answers are wrong")
    assert (wrong["task"], wrong["gold"], wrong["parsed"], wrong["times"]) == ("nli", "1", None, 3)


def test_the_queries_of_the_store(catalogue: Catalogue) -> None:
    tokens = catalogue.rows("SELECT * FROM cache_tokens WHERE view = 'fewshot'")
    quartiles = answer(catalogue, "How often the few-shot teacher")
    assert sum(row["tokens"] for row in quartiles) == len(tokens)
    right = sum(row["first_choice_right"] * row["tokens"] for row in quartiles)
    assert right == pytest.approx(sum(row["gold_rank"] == 0 for row in tokens))
    own = [row["entropy"] for row in tokens if row["task"] == "nli"]
    scores = answer(catalogue, "Student accuracy of each task")
    assert {row["condition"] for row in scores} == {"finetuned", "fewshot", "distilled"}
    assert [row["teacher_entropy"] for row in scores] == pytest.approx([sum(own) / len(own)] * 3)


def test_the_queries_of_the_label_store(catalogue: Catalogue) -> None:
    (found,) = answer(catalogue, "How well the teachers")
    assert (found["view"], found["examples"]) == ("llama", len(label_stores.TRAIN))


def test_the_queries_of_training(catalogue: Catalogue) -> None:
    curve = answer(catalogue, "Student and teacher cross-entropy along training")
    assert [(row["step"], row["student_ce"], row["teacher_ce"]) for row in curve] == [(10, 0.9, 0.4), (20, 0.3, 0.4)]
    first = answer(catalogue, "What a run was made with")[0]
    assert (first["run"], first["learning_rate"], first["torch"]) == ("t", "0.0002", "2.13")


def test_every_table_view_and_column_is_described() -> None:
    for name in [*SCHEMAS, *VIEWS, "cache_tokens", "cache_examples", "cache_labels", "oof"]:
        assert f"`{name}`" in TEXT, f"docs/results.md lacks the view {name}"
    for schema in [*SCHEMAS.values(), TOKEN_SCHEMA, LABEL_SCHEMA]:
        for column in schema.names:
            assert f"`{column}`" in TEXT, f"docs/results.md lacks the column {column}"
