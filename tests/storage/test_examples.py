"""Sequences with any number of answer spans go through a store unchanged; names are found again."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from logitbank.sequences import AnsweredSequence, Span
from logitbank.storage import ExampleRecord, StoreError, TeacherStore, verify
from logitbank.storage.groups import example_ids
from tests.storage import stores

RUNS = st.lists(st.tuples(st.integers(1, 5), st.integers(1, 4)), min_size=1, max_size=9)  # context, answer


def sequence(runs: list[tuple[int, int]], seed: int = 0) -> AnsweredSequence:
    """Random ids: so many tokens of context, so many of an answer, and so on."""
    spans, at = [], 0
    for context, answer in runs:
        spans.append(Span(at + context, answer))
        at += context + answer
    return AnsweredSequence(np.random.default_rng(seed).integers(0, stores.TOKENIZER_SIZE, at), spans)


def records(sequences: list[AnsweredSequence], prefix: str = "train") -> list[ExampleRecord]:
    """Examples of one task and language."""
    return [ExampleRecord(f"{prefix}/{i}", "nli", "en", item) for i, item in enumerate(sequences)]


def build(
    url: str,
    examples: list[ExampleRecord],
    validation: list[ExampleRecord] | None = None,
    views: tuple[str, ...] = ("zeroshot",),
) -> TeacherStore:
    """A sound store in small shards."""
    layout = {"shard_tokens": 4096, "chunk_tokens": 16}
    stores.build(url, examples, validation=validation, views=views, top_k=3, encoding="exact", **layout)
    assert verify(url) == []
    return TeacherStore.open(url)


@settings(max_examples=8, deadline=None)
@given(st.lists(RUNS, min_size=1, max_size=8), st.lists(RUNS, max_size=3))
def test_sequences_come_back(examples: list[list[tuple[int, int]]], validation: list[list[tuple[int, int]]]) -> None:
    trained, held_out = ([sequence(runs, i) for i, runs in enumerate(of)] for of in (examples, validation))
    with tempfile.TemporaryDirectory() as folder:
        store = build(f"{folder}/store", records(trained), records(held_out))
        for table, expected in ((store.examples, trained), (store.validation, held_out)):
            assert [table.sequence(i) for i in range(len(table))] == expected
            assert table.input_length.tolist() == [len(item) for item in expected]
            assert table.answer_length.tolist() == [item.answer_length for item in expected]
        assert [store.examples[i] for i in range(len(trained))] == records(trained)
        last = len(trained) - 1
        gold = store.examples.answer_ids(last)
        np.testing.assert_array_equal(gold, trained[last].answer_ids)
        assert len(store.read([last], "zeroshot")) == len(gold)


@pytest.mark.parametrize(
    "runs",
    [[(1, 1)] * 1000, [(1, 1)], [(30_000, 1)], [(1, 2000)], [(20_000, 3), (1, 1), (9_000, 2)]],
    ids=["1,000 spans", "least", "long context", "long answer", "far apart"],
)
def test_unusual_sequences_come_back(tmp_path: Path, runs: list[tuple[int, int]]) -> None:
    sequences = [sequence([(2, 3)]), sequence(runs, seed=1), sequence([(1, 2), (3, 1)], seed=2)]
    store = build(str(tmp_path / "store"), records(sequences))
    assert [store.examples.sequence(i) for i in (2, 1, 0)] == sequences[::-1]
    assert len(store.read([1], "zeroshot")) == sequences[1].answer_length
    assert len(store.validation) == 0


def test_sequences_longer_than_a_chunk_of_columns_come_back(tmp_path: Path) -> None:
    """Contexts and spans that lie across the chunks of their columns."""
    sequences = [sequence([(1, 1)] * 700, i) for i in range(400)] + [sequence([(90_000, 1), (90_000, 1)], 1)] * 2
    store = build(str(tmp_path / "store"), records(sequences), views=())
    for i in (0, 373, 374, 375, 399, 400, 401):
        assert store.examples.sequence(i) == sequences[i]


def test_the_same_tokens_with_other_spans_are_another_store(tmp_path: Path) -> None:
    ids = list(range(10))
    both, one = (records([AnsweredSequence(ids, spans)]) for spans in ([(2, 1), (8, 2)], [(7, 3)]))
    build(str(tmp_path), both)
    with pytest.raises(StoreError, match=r"created with examples\.hash"):
        build(str(tmp_path), one)


@pytest.mark.parametrize("multiplier", [example_ids.MULTIPLIER, 0], ids=["hashed", "all of one hash"])
def test_names_are_found_whatever_they_hold(tmp_path: Path, multiplier: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(example_ids, "MULTIPLIER", multiplier)
    names = ["", "a", "b", "ab", "ba", "aa", "nli/en/train/1", "nli/en/train/11", "ja/日本語/0", "a b", "é" * 300]
    store = build(str(tmp_path), [ExampleRecord(name, "nli", "en", sequence([(1, 1)])) for name in names])
    table = store.examples
    assert list(table.example_id) == names
    assert table.example_id[-3:] == names[-3:]
    assert [table.index_of(name) for name in names] == list(range(len(names)))
    for absent in ("c", "nli/en/train/", "nli/en/train/1\nnli/en/train/11", "日本語"):
        assert len(table.positions_of(absent)) == 0
        with pytest.raises(StoreError, match="not in the store; its ids look like , a, b"):
            table.index_of(absent)
