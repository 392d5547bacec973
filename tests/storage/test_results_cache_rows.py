"""A teacher store seen through SQL: the same numbers as its reader gives, one row a token."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from logitbank.errors import StoreError
from logitbank.storage import OwnSequences, TeacherStore, open_builder
from logitbank.storage.results.catalogue import Catalogue
from tests.storage import stores


def _build(path: Path) -> TeacherStore:
    stores.build(str(path), stores.records(40))
    return TeacherStore.open(str(path))


def test_tokens_and_examples_equal_the_reader(tmp_path: Path) -> None:
    store = _build(tmp_path / "store")
    results = tmp_path / "results"
    results.mkdir()
    catalogue = Catalogue([results], [str(tmp_path / "store")])
    view = store.views[0]
    for index in (0, 3, len(store.examples) - 1):
        expected = store.read([index], view)
        name = store.examples.example_id[index]
        rows = catalogue.rows(
            f"SELECT * FROM cache_tokens WHERE example_id = '{name}' AND view = '{view}' ORDER BY position"
        )
        assert [row["token_id"] for row in rows] == store.examples.answer_ids(index).tolist()
        logprob = expected.gold_logit.astype(float) - expected.logsumexp
        assert [row["logprob"] for row in rows] == pytest.approx(logprob.tolist(), rel=1e-6)
        assert [row["top_ids"] for row in rows] == expected.token_ids[:, :5].tolist()
        assert [row["gold_rank"] for row in rows] == expected.gold_rank.tolist()
        (example,) = catalogue.rows(f"SELECT * FROM cache_examples WHERE example_id = '{name}' AND view = '{view}'")
        assert example["cross_entropy"] == pytest.approx(-logprob.mean(), rel=1e-6)
        assert example["known"] == bool(np.all(expected.gold_rank == 0))
        assert example["task"] == store.info.tasks[int(store.examples.task[index])]


def test_own_sequences_have_rows_of_their_own(tmp_path: Path) -> None:
    """Two answers to one example, none to the others, beside a view of all examples."""
    url, examples, spec = str(tmp_path / "store"), stores.records(6), stores.spec(top_k=20)
    own = OwnSequences([examples[4].example_id] * 2, stores.conversations(2))
    with open_builder(url, spec, examples, [], vocabulary=stores.vocabulary) as builder:
        builder.add_view("zeroshot", {}, {})
        stores.write_missing(builder, "zeroshot", examples, 20)
        builder.add_view("sampled", {}, {}, own=own)
        stores.write_missing(builder, "sampled", own.sequences, 20)
    rows = Catalogue([], [url]).rows("SELECT * FROM cache_tokens WHERE view = 'sampled' ORDER BY sequence, position")
    assert {row["example_id"] for row in rows} == {examples[4].example_id}
    assert [row["token_id"] for row in rows] == [token for one in own.sequences for token in one.answer_ids]
    assert [row["sequence"] for row in rows] == [i for i, one in enumerate(own.sequences) for _ in one.answer_ids]
    question = "SELECT view, example_id, answer_tokens FROM cache_examples ORDER BY view, answer_tokens, example_id"
    counted = [tuple(row.values()) for row in Catalogue([], [url]).rows(question)]
    lengths = sorted(sequence.answer_length for sequence in own.sequences)
    assert counted[:2] == [("sampled", examples[4].example_id, length) for length in lengths]
    assert len(counted) == 2 + len(examples)


def test_without_store_the_views_are_empty(tmp_path: Path) -> None:
    assert Catalogue([tmp_path]).rows("SELECT * FROM cache_tokens JOIN cache_examples USING (example_id)") == []


def test_a_missing_store_is_named(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="nowhere"):
        Catalogue([tmp_path], [str(tmp_path / "nowhere")])
