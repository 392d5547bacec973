"""Views whose teacher read sequences of its own: other answers to the store's examples, or other token ids."""

from __future__ import annotations

import multiprocessing
import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from logitbank.sequences import AnsweredSequence
from logitbank.storage import (
    CorruptStoreError,
    OtherTeacher,
    OwnSequences,
    StoreError,
    TeacherStore,
    Tokens,
    Vocabulary,
    open_builder,
    verify,
)
from logitbank.storage.objects.local import LocalObjects
from tests.storage import kills, stores

EXAMPLES = stores.records(12, longest=4)
LAYOUT: dict[str, Any] = {"shard_tokens": 32, "chunk_tokens": 16, "top_k": 20, "encoding": "compact"}
SMALL = Tokens(tokenizer_size=90, vocab_size=96, tokenizer_hash="s" * 64)
# Examples without a sequence, examples with several, in no order.
NAMES = [EXAMPLES[i].example_id for i in (7, 2, 2, 2, 11, 0, 7, 5, 5, 9)]
SAMPLED = OwnSequences(NAMES, stores.conversations(len(NAMES), seed=4))
OTHER = OwnSequences(
    NAMES,
    stores.conversations(len(NAMES), seed=5, turns=3, size=SMALL.tokenizer_size),
    OtherTeacher({"model": "small", "dtype": "float32"}, SMALL, lambda: stores.vocabulary(SMALL.tokenizer_size)),
)
OWN = {"sampled": SAMPLED, "other": OTHER}


def build(url: str, own: dict[str, OwnSequences] = OWN, **changes: Any) -> None:
    """Build a store with one view of its examples, and views with sequences of their own."""
    spec = stores.spec(**LAYOUT)
    with open_builder(url, spec, EXAMPLES, [], vocabulary=stores.vocabulary, **changes) as builder:
        builder.add_view("zeroshot", {}, {})
        stores.write_missing(builder, "zeroshot", EXAMPLES, spec.top_k)
        for view, sequences in own.items():
            builder.add_view(view, {"writer": view}, {}, own=sequences)
            stores.write_missing(builder, view, sequences.sequences, spec.top_k, **sizes(sequences))


def sizes(own: OwnSequences) -> dict[str, int]:
    """What the stand-in teacher of a view is told of its tokens."""
    if own.teacher is None:
        return {}
    return {"vocab_size": own.teacher.tokens.vocab_size, "tokenizer_size": own.teacher.tokens.tokenizer_size}


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished store; nobody changes it."""
    path = tmp_path_factory.mktemp("own") / "store"
    build(str(path))
    return path


@pytest.fixture
def url(pristine: Path, tmp_path: Path) -> str:
    """A finished store that the test may change."""
    return str(shutil.copytree(pristine, tmp_path / "store"))


def contents(root: Path | str) -> dict[str, bytes]:
    """Every object of a store but its lock files."""
    files = [path for path in sorted(Path(root).rglob("*")) if path.is_file() and not path.name.startswith(".lock")]
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in files}


@pytest.mark.parametrize("view", list(OWN))
def test_a_view_holds_its_own_sequences_and_rows_beside_the_stores(pristine: Path, view: str) -> None:
    own = OWN[view]
    assert verify(str(pristine)) == []
    store = TeacherStore.open(str(pristine))
    table, plan = store.table(view), store.plan_of(view)
    assert store.has_own_sequences(view)
    assert [table.sequence(i) for i in range(len(table))] == list(own.sequences)
    assert list(table.example_id) == NAMES
    assert [EXAMPLES[i].example_id for i in table.example] == NAMES
    assert [store.info.tasks[i] for i in table.task] == [EXAMPLES[i].task for i in table.example]
    assert [store.info.languages[i] for i in table.language] == [EXAMPLES[i].language for i in table.example]
    assert plan.shards > 1
    assert store.missing_shards(view) == []
    for shard in range(plan.shards):
        members = plan.examples_of(shard)
        answers = np.concatenate([own.sequences[i].answer_ids for i in members])
        said = stores.teacher_rows(answers, 20, seed=len(view), **sizes(own))
        for rows in (store.read(members, view), store.read_shard(view, shard)):
            np.testing.assert_allclose(rows.logits, said.logits, atol=5 / 128, rtol=1e-6)
            np.testing.assert_array_equal(rows.gold_rank, said.gold_rank)
            np.testing.assert_array_equal(rows.token_ids[:, 0], said.token_ids[:, 0])
    np.testing.assert_array_equal(
        store.read([9, 0], view).logits,
        np.concatenate([store.read([9], view).logits, store.read([0], view).logits]),
    )


def test_other_views_know_nothing_of_it(pristine: Path, tmp_path: Path) -> None:
    build(str(tmp_path / "alone"), {})
    alone = contents(tmp_path / "alone")
    assert alone.items() <= contents(pristine).items()
    store = TeacherStore.open(str(pristine))
    assert store.table("zeroshot") is store.examples
    assert store.plan_of("zeroshot") is store.plan
    assert not store.has_own_sequences("zeroshot")
    store.require_examples("zeroshot")
    with pytest.raises(
        StoreError, match=r"--view sampled: .* expected a view of the store's own examples \(zeroshot\)"
    ):
        store.require_examples("sampled")


def test_a_view_says_what_its_teacher_read(pristine: Path, tmp_path: Path) -> None:
    store = TeacherStore.open(str(pristine))
    said = {view: store.view_attributes(view)["sequences"] for view in store.views}
    assert said == {"zeroshot": "student", "sampled": "own", "other": "own"}
    assert store.tokens_of("sampled") == store.tokens_of("zeroshot") == store.info.tokens
    assert store.tokens_of("other") == SMALL
    assert store.view_attributes("other")["teacher"] == {"model": "small", "dtype": "float32"}
    with open_builder(str(tmp_path), stores.spec(), EXAMPLES, [], vocabulary=stores.vocabulary) as builder:
        builder.add_view("fewshot", {}, {}, sequences="context")
    assert TeacherStore.open(str(tmp_path)).view_attributes("fewshot")["sequences"] == "context"


def last_moved(own: OwnSequences) -> OwnSequences:
    """The same tokens, the last answer one token shorter."""
    *others, last = own.sequences
    spans = [*last.spans[:-1], (last.spans[-1].start + 1, last.spans[-1].length - 1)]
    return replace(own, sequences=[*others, AnsweredSequence(last.ids, spans)])


@pytest.mark.parametrize(
    ("view", "changed", "message"),
    [
        ("sampled", replace(SAMPLED, example_ids=[*NAMES[:-1], NAMES[0]]), r"own\.hash"),
        ("sampled", OwnSequences(NAMES[:3], SAMPLED.sequences[:3]), r"own\.count = 10, but this run requests 3"),
        ("sampled", OTHER, r"own\."),
        ("other", last_moved(OTHER), r"own\.hash"),
        ("other", replace(OTHER, teacher=None), r"own\.teacher\.dtype = float32, but this run requests nothing"),
    ],
)  # fmt: skip
def test_going_on_with_other_sequences_is_refused(url: str, view: str, changed: OwnSequences, message: str) -> None:
    before = contents(url)
    with pytest.raises(StoreError, match=rf"view {view}: created with {message}"):
        build(url, {view: changed})
    assert contents(url) == before


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (replace(SAMPLED, example_ids=["nobody", *NAMES[1:]]), "example 'nobody' is not in the store"),
        (replace(SAMPLED, example_ids=NAMES[1:]), "got 9 ids and 10 sequences"),
        (OwnSequences([], []), "examples: expected at least one, got none"),
        (replace(OTHER, teacher=replace(OTHER.teacher, tokens=replace(SMALL, tokenizer_size=19))), "at least 20 tok"),
        (replace(OTHER, teacher=replace(OTHER.teacher, vocabulary=stores.vocabulary)), "expected 90 tokens, got 500"),
    ],
)  # fmt: skip
def test_sequences_that_a_store_cannot_keep_are_refused(tmp_path: Path, changed: Any, message: str) -> None:
    build(str(tmp_path), {})
    before = contents(tmp_path)
    with pytest.raises(StoreError, match=message):
        build(str(tmp_path), {"sampled": changed})
    assert contents(tmp_path) == before


def test_a_build_killed_at_every_object_of_a_view_ends_byte_identical(pristine: Path, tmp_path: Path) -> None:
    few = {"other": OwnSequences(OTHER.example_ids[:4], OTHER.sequences[:4], OTHER.teacher)}
    whole, path = tmp_path / "whole", tmp_path / "killed"
    build(str(whole), {})
    shutil.copytree(whole, path)
    keys = kills.written(LocalObjects, lambda: build(str(whole), few))
    assert keys.index("manifest/other/view.json") > keys.index("teachers/other/examples/span_position/c/0")
    assert keys.index("manifest/other/view.json") > keys.index("teachers/other/vocabulary/tokens/c/0")
    for number, key in enumerate(keys):
        if number % 5 and "manifest" not in key:
            continue
        assert kills.killed_at(LocalObjects, lambda: build(str(path), few), key, kills.inside_a_file)
        assert ("other" in TeacherStore.open(str(path)).views) == ("manifest/other/view.json" in keys[:number])
    build(str(path), few)
    assert contents(path) == contents(whole)
    assert verify(str(path)) == []


def test_a_view_is_completed_with_the_numbering_that_it_was_begun_with(pristine: Path, tmp_path: Path) -> None:
    def never() -> Vocabulary:
        raise AssertionError("a frozen numbering must not be learned again")

    url, spec = str(tmp_path / "store"), stores.spec(**LAYOUT)
    build(url, {})
    with open_builder(url, spec, EXAMPLES, [], vocabulary=never) as builder:
        builder.add_view("other", {"writer": "other"}, {}, own=OTHER)
    store = TeacherStore.open(url)
    assert store.missing_shards("other") == list(range(store.plan_of("other").shards))
    assert any("not written yet" in problem for problem in verify(url))
    assert OTHER.teacher is not None
    build(url, {"sampled": SAMPLED, "other": replace(OTHER, teacher=replace(OTHER.teacher, vocabulary=never))})
    assert contents(url) == contents(pristine)


def test_a_numbering_is_part_of_what_a_view_is(pristine: Path, tmp_path: Path) -> None:
    def another() -> Vocabulary:
        return Vocabulary.learn(np.arange(89, -1, -1, dtype=np.int32)[:, None], SMALL.tokenizer_size)

    assert OTHER.teacher is not None
    build(str(tmp_path), {"other": replace(OTHER, teacher=replace(OTHER.teacher, vocabulary=another))})
    views = [TeacherStore.open(str(path)).view_attributes("other") for path in (pristine, tmp_path)]
    assert views[0]["identity"] == views[1]["identity"]
    assert views[0]["fingerprint"] != views[1]["fingerprint"]


def work(url: str, worker: int, pilots: Any) -> None:
    """Subprocess: one of two workers whose pilots for the view would come out differently."""

    def pilot() -> Vocabulary:
        pilots.send(worker)
        time.sleep(0.3)
        tokens = np.random.default_rng(worker).permutation(SMALL.tokenizer_size).astype(np.int32)
        return Vocabulary.learn(tokens[:, None], SMALL.tokenizer_size)

    assert OTHER.teacher is not None
    own, spec = replace(OTHER, teacher=replace(OTHER.teacher, vocabulary=pilot)), stores.spec(**LAYOUT)
    with open_builder(url, spec, EXAMPLES, [], vocabulary=stores.vocabulary, worker=worker, workers=2) as builder:
        builder.add_view("other", {}, {}, own=own)
        for shard in builder.missing_shards("other"):
            if shard % 2 == worker:
                members = builder.plan_of("other").examples_of(shard)
                answers = np.concatenate([own.sequences[i].answer_ids for i in members])
                builder.write_shard("other", shard, stores.teacher_rows(answers, spec.top_k, **sizes(own)))


def test_workers_that_start_together_number_tokens_once(tmp_path: Path) -> None:
    url = str(tmp_path / "store")
    build(url, {})
    fork = multiprocessing.get_context("fork")
    receiver, sender = fork.Pipe(duplex=False)
    processes = [fork.Process(target=work, args=(url, worker, sender)) for worker in (0, 1)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert receiver.poll(0)
    receiver.recv()
    assert not receiver.poll(0)
    assert verify(url) == []


def flip(path: Path) -> None:
    """Change one bit in the middle of a file."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_every_damaged_object_is_found_and_never_read(url: str) -> None:
    """Columns and vocabulary of a view are verified as the store's are."""

    def read(view: str) -> None:
        store = TeacherStore.open(url)
        table = store.table(view)
        assert [table.sequence(i) for i in range(len(table))] == list(OWN[view].sequences)
        store.read(range(len(table)), view)

    objects = [key for key in contents(url) if key.startswith(("teachers/sampled/", "teachers/other/"))]
    own_objects = [key for key in objects if "/examples/" in key or "/vocabulary/" in key]
    assert len(own_objects) > 40
    for key in own_objects:
        sound = (Path(url) / key).read_bytes()
        flip(Path(url) / key)
        with pytest.raises(CorruptStoreError, match=key):
            read(key.split("/")[1])
        assert [problem.startswith(key) for problem in verify(url)] == [True]
        (Path(url) / key).write_bytes(sound)
    for view in OWN:
        read(view)


def test_verify_measures_a_view_by_its_own_tokens(tmp_path: Path) -> None:
    ids = OTHER.sequences[0].ids.copy()
    ids[0] = SMALL.vocab_size  # a token of the store's tokenizer
    first = AnsweredSequence(ids, OTHER.sequences[0].spans)
    build(str(tmp_path), {"other": replace(OTHER, sequences=[first, *OTHER.sequences[1:]])})
    assert verify(str(tmp_path)) == [f"view other {NAMES[0]}: a token id outside 0 to {SMALL.vocab_size - 1}"]


def test_rows_of_the_stores_tokens_are_no_rows_of_another_teachers(tmp_path: Path) -> None:
    spec = stores.spec(**LAYOUT)
    with open_builder(str(tmp_path), spec, EXAMPLES, [], vocabulary=stores.vocabulary) as builder:
        builder.add_view("other", {}, {}, own=OTHER)
        with pytest.raises(StoreError, match="token_ids: expected 0 to 89"):
            stores.write_missing(builder, "other", OTHER.sequences, spec.top_k)
