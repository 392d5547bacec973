"""A label store seen through SQL: its own numbers, and how well the out-of-fold teachers do."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from logitbank.preference import CLASSES
from logitbank.storage import LabelStore, Scorer
from logitbank.storage.results.catalogue import Catalogue
from logitbank.tasks.scoring.classes import class_statistics
from tests.storage import label_stores, stores
from tests.storage.label_stores import FOLD, TRAIN, builder, logits_of


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A view of all folds, one of two, and imported logits that no softmax in float32 bears."""
    made = str(tmp_path_factory.mktemp("labels") / "store")
    with builder(made) as writing:
        label_stores.score(writing, "llama")
        label_stores.score(writing, "mistral", [0, 2])
        writing.add_view("imported", {}, {})
        for shard in writing.missing_shards("imported"):
            rows = writing.shard_rows(shard)
            writing.write_shard("imported", shard, 1000 * logits_of(rows), Scorer("a.npy", "f" * 64))
    return made


def test_rows_equal_the_reader(url: str) -> None:
    store = LabelStore.open(url)
    rows = Catalogue([], [url]).rows("SELECT * FROM cache_labels WHERE view = 'llama' ORDER BY fold, example_id")
    assert len(rows) == len(TRAIN)
    for row in rows:
        place = store.train.index_of(row["example_id"])
        assert place is not None
        logits = store.logits("llama")[place].astype(np.float64)
        odds = np.exp(logits) / np.exp(logits).sum()
        assert [row[f"logit_{name}"] for name in CLASSES] == logits.tolist()
        assert [row[f"target_{name}"] for name in CLASSES] == store.train.target[place].astype(float).tolist()
        assert [row[f"p_{name}"] for name in CLASSES] == pytest.approx(odds.tolist(), rel=1e-12)
        assert row["fold"] == FOLD[place]
        assert row["prompt_key"] == f"{TRAIN[place].prompt_key:016x}"
        assert (row["teacher"], row["proven"], row["fingerprint"]) == (f"T{FOLD[place]}", True, store.info.fingerprint)


@pytest.mark.numeric
@pytest.mark.parametrize("view", ["llama", "imported"])
def test_out_of_fold_scores_are_those_of_evaluation(url: str, view: str) -> None:
    """Float64 on both sides; also for logits whose probabilities are 0 in float64."""
    store = LabelStore.open(url)
    logits = store.logits(view).astype(np.float64)
    odds = np.exp(logits - logits.max(1, keepdims=True))
    expected = class_statistics(odds / odds.sum(1, keepdims=True), store.train.target.astype(np.float64))
    rows = Catalogue([], [url]).rows(f"SELECT * FROM oof WHERE view = '{view}'")
    for name, column in (("log_loss", "log_loss"), ("accuracy", "correct")):
        found = {row["example_id"]: row[column] for row in rows}
        wanted = dict(zip(store.train.example_id, expected[name].tolist(), strict=True))
        assert found == pytest.approx(wanted, rel=1e-12, abs=1e-12)


def test_folds_not_scored_have_no_rows(url: str) -> None:
    rows = Catalogue([], [url]).rows(
        "SELECT view, count(*) AS examples, bool_and(proven) AS proven FROM oof GROUP BY view ORDER BY view"
    )
    part = int((FOLD != 1).sum())
    assert [tuple(row.values()) for row in rows] == [
        ("imported", len(TRAIN), False),
        ("llama", len(TRAIN), True),
        ("mistral", part, True),
    ]


def test_both_kinds_of_stores_are_read_together(url: str, tmp_path: Path) -> None:
    stores.build(str(tmp_path / "tokens"), stores.records(3))
    catalogue = Catalogue([], [url, str(tmp_path / "tokens")])
    assert catalogue.rows("SELECT DISTINCT store FROM cache_tokens") == [{"store": str(tmp_path / "tokens")}]
    assert catalogue.rows("SELECT DISTINCT store FROM oof") == [{"store": url}]
    assert Catalogue([]).rows("SELECT * FROM oof JOIN cache_labels USING (example_id)") == []
