"""A label store seen through SQL: its own numbers, and how well the out-of-fold teachers do."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from logitbank.preference import CLASSES, Pair, SeenPrompts, prompt_keys
from logitbank.storage import LabelStore, Scorer, open_label_builder
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


def test_random_labels_are_learnt_but_not_out_of_fold(tmp_path: Path) -> None:
    """Two rows of a prompt share a random label: whoever knows one of them knows the other.

    A learner with a weight of its own for every word (ridge regression on words, one step in closed form) fits its
    training rows; out of fold it is right by chance, within a 99% interval of the binomial distribution over prompts.
    """
    rng = np.random.default_rng(7)
    pairs = label_stores.pairs("train", 360)
    of_prompt = rng.permutation(np.repeat(np.eye(3), 60, axis=0))
    train = [_with_target(pair, of_prompt[row // 2]) for row, pair in enumerate(pairs)]
    fold = np.repeat(np.arange(3), 120).astype(np.int8)
    vocabulary = {word: place for place, word in enumerate(sorted({word for pair in train for word in _words(pair)}))}
    features = np.zeros((len(train), len(vocabulary)))
    for row, pair in enumerate(train):
        features[row, [vocabulary[word] for word in _words(pair)]] = 1
    targets, keys = np.array([pair.target for pair in train]), prompt_keys(train)
    in_fold = []
    opened = open_label_builder(
        str(tmp_path), label_stores.spec(shard_rows=64), train, fold, [], np.zeros(0, np.int8), []
    )
    with opened as made:
        made.add_view("memory", {}, {})
        for held in range(3):
            known = fold != held
            kernel = features[known] @ features[known].T + 0.1 * np.eye(int(known.sum()))
            logits = (features @ features[known].T @ np.linalg.solve(kernel, targets[known])).astype(np.float32)
            in_fold.append((logits[known].argmax(1) == targets[known].argmax(1)).mean())
            teacher = Scorer(f"T{held}", f"{held}" * 64, held, SeenPrompts.of(keys[known]))
            for shard in made.missing_shards("memory", held):
                rows = made.shard_rows(shard)
                made.write_shard("memory", shard, logits[rows.start : rows.stop], teacher)
    (out_of_fold,) = Catalogue([], [str(tmp_path)]).rows("SELECT avg(correct) AS accuracy FROM oof")
    assert min(in_fold) >= 0.9
    half_width = 2.576 * (1 / 3 * 2 / 3 / 180) ** 0.5
    assert abs(out_of_fold["accuracy"] - 1 / 3) <= half_width


def _with_target(pair: Pair, target: np.ndarray) -> Pair:
    first, second, tie = target.tolist()
    return replace(pair, target=(first, second, tie))


def _words(pair: Pair) -> set[str]:
    return set(" ".join((*pair.prompt, *pair.response_a, *pair.response_b)).split())
