"""Writing, resuming, sharing and reading a store, through public names."""

from __future__ import annotations

import multiprocessing
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from logitbank.storage import (
    CorruptStoreError,
    IncompleteStoreError,
    StoreBuilder,
    StoreError,
    TeacherStore,
    Vocabulary,
    open_builder,
    verify,
)
from logitbank.storage.objects import open_objects
from logitbank.storage.objects.local import LocalObjects
from tests.storage import stores

EXAMPLES = stores.records(40)
VALIDATION = stores.records(5, seed=1, prefix="validation")
NO_VOCABULARY = "a finished base must not be made again"


def contents(root: Path) -> dict[str, bytes]:
    """Every object of a store but its lock files."""
    return {
        path.relative_to(root).as_posix(): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file() and not path.name.startswith(".lock")
    }


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished store of two views; tests get copies."""
    path = tmp_path_factory.mktemp("finished") / "store"
    stores.build(str(path), EXAMPLES, validation=VALIDATION)
    return path


@pytest.fixture
def url(tmp_path: Path, finished: Path) -> str:
    """A finished store of two views that the test may change."""
    return str(shutil.copytree(finished, tmp_path / "store"))


@pytest.mark.parametrize("encoding", ["exact", "float16", "compact"])
@pytest.mark.parametrize("top_k", [1, 64, 70, 96])
def test_reads_what_the_teacher_said(tmp_path: Path, encoding: str, top_k: int) -> None:
    path = str(tmp_path / "store")
    layout = {"shard_tokens": 128, "chunk_tokens": 32}
    stores.build(path, EXAMPLES, validation=VALIDATION, encoding=encoding, top_k=top_k, **layout)
    assert verify(path) == []
    store = TeacherStore.open(path)
    assert store.views == ("fewshot", "zeroshot")
    for table, records in ((store.examples, EXAMPLES), (store.validation, VALIDATION)):
        assert [table.sequence(i) for i in range(len(table))] == [record.sequence for record in records]
        for i, record in enumerate(records):
            np.testing.assert_array_equal(table.answer_ids(i), record.answer_ids)
            assert (table.input_length[i], table.answer_length[i]) == (len(record.input_ids), len(record.answer_ids))
    assert list(store.examples.example_id) == [e.example_id for e in EXAMPLES]
    for view in store.views:
        for shard in range(store.info.shards):
            members = store.plan.examples_of(shard)
            answers = np.concatenate([EXAMPLES[i].answer_ids for i in members])
            said = stores.teacher_rows(answers, top_k, seed=len(view))
            rows = store.read(list(members), view)
            if encoding != "float16":
                np.testing.assert_array_equal(rows.logits[:, 0], said.logits[:, 0])
            np.testing.assert_allclose(rows.logits, said.logits, atol=5 / 128, rtol=1e-6)
            np.testing.assert_allclose(rows.logsumexp, said.logsumexp, atol=2e-3)
            np.testing.assert_allclose(rows.entropy, said.entropy, atol=2e-3)
            np.testing.assert_allclose(rows.gold_logit, said.gold_logit, atol=2e-3)
            np.testing.assert_array_equal(rows.gold_rank, said.gold_rank)


def test_rows_come_in_the_order_asked_for(url: str) -> None:
    store = TeacherStore.open(url)
    order = [31, 2, 2, 17, 0]
    together = store.read(order, "fewshot")
    start = 0
    for example in order:
        alone = TeacherStore.open(url).read([example], "fewshot")
        stop = start + len(alone)
        assert len(alone) == len(EXAMPLES[example].answer_ids)
        np.testing.assert_array_equal(together.token_ids[start:stop], alone.token_ids)
        np.testing.assert_array_equal(together.logits[start:stop], alone.logits)
        start = stop
    assert start == len(together)


@pytest.fixture
def fetched(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """Keys and sizes of the objects that are read from here on."""
    seen: list[tuple[str, int]] = []
    get = LocalObjects.get

    def counting(self: LocalObjects, key: str) -> bytes:
        data = get(self, key)
        seen.append((key, len(data)))
        return data

    monkeypatch.setattr(LocalObjects, "get", counting)
    return seen


@pytest.mark.parametrize("encoding", ["exact", "float16", "compact"])
def test_fewer_ranks_cost_fewer_blocks(tmp_path: Path, encoding: str, fetched: list[tuple[str, int]]) -> None:
    path = str(tmp_path / "store")
    stores.build(path, EXAMPLES, views=("zeroshot",), encoding=encoding, top_k=200)
    blocks = {1: 1, 16: 1, 17: 2, 64: 4, 65: 5, 200: 13}
    for top_k, expected in blocks.items():
        store = TeacherStore.open(path)
        fetched.clear()
        rows = store.read([0, 1, 2], "zeroshot", top_k)
        assert rows.token_ids.shape[1] == top_k
        chunks = [key.split("/")[2:] for key, _ in fetched if "/c/" in key]
        per_array = {name: {tail[-1] for head, *tail in chunks if head == name} for name, *_ in chunks}
        wide = [columns for columns in per_array.values() if columns != {"0"}] or [{"0"}]
        assert all(columns == {str(i) for i in range(expected)} for columns in wide)
        assert all(tail[1:2] == ["0"] or tail == ["c", "0"] for _, *tail in chunks), "one shard asked for"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"top_k": 64}, r"top_k = 96, but this run requests 64"),
        ({"identity": {"seed": 2}}, r"identity\.seed = 1, but this run requests 2"),
        (
            {"teacher": {"model": "tiny", "dtype": "bfloat16"}},
            r"dtype = float32, but this run requests bfloat16",
        ),
        ({"encoding": "exact"}, r"encoding = compact, but this run requests exact"),
        ({"tokenizer_hash": "u" * 64}, r"tokenizer_hash = t+, but this run requests u+"),
    ],
)
def test_going_on_with_other_inputs_is_refused(url: str, change: dict[str, Any], message: str) -> None:
    before = contents(Path(url))
    with pytest.raises(StoreError, match=message):
        stores.build(url, EXAMPLES, validation=VALIDATION, **change)
    assert contents(Path(url)) == before


def test_the_setting_is_named_and_not_what_follows_from_it(tmp_path: Path) -> None:
    """A store smaller than a shard has its chunks from its examples; draws come with their signal."""
    url = str(tmp_path / "store")
    stores.build(url, EXAMPLES[:4], shard_tokens=4096, chunk_tokens=4096)
    with pytest.raises(StoreError, match=r"created with examples\.count = 4, but this run requests 7"):
        stores.build(url, EXAMPLES[:7], shard_tokens=4096, chunk_tokens=4096)
    with pytest.raises(StoreError, match="created with signal = topk, but this run requests sampled"):
        stores.build(url, EXAMPLES[:4], shard_tokens=4096, chunk_tokens=4096, signal="sampled", draws=50)


def test_going_on_with_other_examples_is_refused(url: str) -> None:
    other = [*EXAMPLES[:-1], stores.records(60)[-1]]
    with pytest.raises(StoreError, match=r"examples\.hash"):
        stores.build(url, other, validation=VALIDATION)


def test_a_view_with_another_identity_is_refused(url: str) -> None:
    with (
        open_builder(url, stores.spec(), EXAMPLES, VALIDATION, vocabulary=no_vocabulary) as builder,
        pytest.raises(StoreError, match=r"view fewshot: created with demonstrations = 7, but this run requests 8"),
    ):
        builder.add_view("fewshot", {"demonstrations": 8}, {})


def no_vocabulary() -> Vocabulary:
    """Stands for a pilot that must not run a second time."""
    raise AssertionError(NO_VOCABULARY)


def test_a_half_built_store_says_what_is_missing_and_is_completed(tmp_path: Path, url: str) -> None:
    half = str(tmp_path / "half")
    with open_builder(half, stores.spec(), EXAMPLES, VALIDATION, vocabulary=stores.vocabulary) as builder:
        builder.add_view("fewshot", {"demonstrations": 7}, {})
        assert builder.missing_shards("fewshot") == list(range(builder.plan.shards))
        write_some(builder, "fewshot", 2)
    store = TeacherStore.open(half)
    assert store.missing_shards("fewshot") == list(range(2, store.info.shards))
    with pytest.raises(IncompleteStoreError, match=rf"{store.info.shards - 2} of {store.info.shards} shards"):
        store.require_view("fewshot")
    with pytest.raises(IncompleteStoreError):
        store.read([len(EXAMPLES) - 1], "fewshot")
    assert len(store.read([0], "fewshot")) == len(EXAMPLES[0].answer_ids)
    assert any("not written yet" in problem for problem in verify(half))
    done = contents(Path(half))
    stores.build(half, EXAMPLES, validation=VALIDATION)
    assert contents(Path(half)) == contents(Path(url))
    assert done.items() <= contents(Path(half)).items()


def write_some(builder: Any, view: str, count: int) -> None:
    """Write the first missing shards of a view."""
    for shard in builder.missing_shards(view)[:count]:
        builder.write_shard(view, shard, shard_rows(builder, view, shard))


def shard_rows(builder: Any, view: str, shard: int) -> Any:
    """What the stand-in teacher says about a shard."""
    answers = np.concatenate([EXAMPLES[i].answer_ids for i in builder.plan.examples_of(shard)])
    return stores.teacher_rows(answers, 96, seed=len(view))


def test_another_view_leaves_everything_else_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "store"
    stores.build(str(path), EXAMPLES, views=("fewshot",))
    before = contents(path)
    stores.build(str(path), EXAMPLES, views=("zeroshot",))
    after = contents(path)
    assert before.items() <= after.items()
    assert all("zeroshot" in key for key in after.keys() - before.keys())
    assert TeacherStore.open(str(path)).views == ("fewshot", "zeroshot")


def test_a_finished_store_is_left_alone(url: str) -> None:
    stamps = {path: path.stat().st_mtime_ns for path in Path(url).rglob("*") if path.is_file()}
    stores.build(url, EXAMPLES, validation=VALIDATION)
    assert {path: path.stat().st_mtime_ns for path in Path(url).rglob("*") if path.is_file()} == stamps


@pytest.mark.parametrize("damage", ["nan", "shape", "ids", "rising", "rank"])
def test_a_bad_signal_leaves_its_shard_unwritten(tmp_path: Path, damage: str) -> None:
    path = str(tmp_path / "store")
    with open_builder(path, stores.spec(), EXAMPLES, [], vocabulary=stores.vocabulary) as builder:
        builder.add_view("fewshot", {}, {})
        before = contents(Path(path))
        rows = shard_rows(builder, "fewshot", 0)
        if damage == "nan":
            rows.logits[3, 4] = np.nan
        elif damage == "shape":
            rows = rows.take(np.arange(len(rows) - 1))
        elif damage == "ids":
            rows.token_ids[0, 0] = stores.TOKENIZER_SIZE
        elif damage == "rising":
            rows.logits[0, 1] = rows.logits[0, 0] + 1
        else:
            rows.gold_rank[0] = -1
        with pytest.raises(StoreError):
            builder.write_shard("fewshot", 0, rows)
        assert contents(Path(path)) == before
        assert 0 in builder.missing_shards("fewshot")
        builder.write_shard("fewshot", 0, shard_rows(builder, "fewshot", 0))
        assert 0 not in builder.missing_shards("fewshot")


def test_workers_make_the_store_that_one_builder_makes(tmp_path: Path, url: str) -> None:
    shared = tmp_path / "shared"
    for worker in (1, 0):
        with open_builder(
            str(shared), stores.spec(), EXAMPLES, VALIDATION, vocabulary=stores.vocabulary, worker=worker, workers=2
        ) as builder:
            for view in ("fewshot", "zeroshot"):
                builder.add_view(view, {"demonstrations": len(view)}, {})
                for shard in builder.missing_shards(view):
                    if shard % 2 == worker:
                        builder.write_shard(view, shard, shard_rows(builder, view, shard))
    assert contents(shared) == contents(Path(url))


def work(url: str, worker: int, made: Any) -> None:
    """Subprocess: one of two workers whose pilots come out differently."""

    def pilot() -> Vocabulary:
        made.send(worker)
        time.sleep(0.3)
        tokens = np.random.default_rng(worker).permutation(stores.TOKENIZER_SIZE).astype(np.int32)
        return Vocabulary.learn(tokens[:, None], stores.TOKENIZER_SIZE)

    with open_builder(url, stores.spec(), EXAMPLES, VALIDATION, vocabulary=pilot, worker=worker, workers=2) as builder:
        builder.add_view("fewshot", {}, {})
        for shard in builder.missing_shards("fewshot"):
            if shard % 2 == worker:
                builder.write_shard("fewshot", shard, shard_rows(builder, "fewshot", shard))


def test_workers_that_start_together_make_one_base(tmp_path: Path) -> None:
    fork = multiprocessing.get_context("fork")
    receiver, sender = fork.Pipe(duplex=False)
    url = str(tmp_path / "store")
    processes = [fork.Process(target=work, args=(url, worker, sender)) for worker in (0, 1)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    sender.close()
    pilots = 0
    while receiver.poll(0):
        try:
            receiver.recv()
        except EOFError:
            break
        pilots += 1
    assert pilots == 1
    assert verify(url) == []


def builder(url: str, worker: int | None) -> Any:
    """A builder of the finished store at `url`, undeclared or one of two workers."""
    workers = None if worker is None else 2
    return open_builder(
        url, stores.spec(), EXAMPLES, VALIDATION, vocabulary=no_vocabulary, worker=worker, workers=workers
    )


def missing_shards(builder: StoreBuilder, view: str) -> list[int]:
    """What a builder of the finished store still has to write of a view."""
    builder.add_view(view, {"demonstrations": len(view)}, {})
    return builder.missing_shards(view)


@pytest.fixture
def holder(url: str, request: pytest.FixtureRequest) -> Iterator[Any]:
    """Another process that holds the right to write; the parameter is its worker index."""
    with stores.held_elsewhere(lambda: builder(url, request.param)) as process:
        yield process


@pytest.mark.parametrize("holder", [None], indirect=True)
@pytest.mark.parametrize("worker", [None, 1])
def test_an_undeclared_builder_excludes_all_others_until_it_dies(holder: Any, url: str, worker: int | None) -> None:
    with pytest.raises(StoreError, match="another process is building it"):
        builder(url, worker).__enter__()
    holder.kill()
    holder.join()
    assert holder.exitcode == -signal.SIGKILL
    with builder(url, worker) as writing:
        assert missing_shards(writing, "fewshot") == []


@pytest.mark.parametrize("holder", [0], indirect=True)
def test_declared_builders_share_but_not_the_same_part(holder: Any, url: str) -> None:
    for worker in (None, 0):
        with pytest.raises(StoreError, match="another process is building it"):
            builder(url, worker).__enter__()
    with builder(url, 1) as writing:
        assert missing_shards(writing, "zeroshot") == []


def test_asking_for_what_is_not_there_says_what_is(url: str, tmp_path: Path) -> None:
    store = TeacherStore.open(url)
    with pytest.raises(StoreError, match="fewshot, zeroshot"):
        store.read([0], "oneshot")
    with pytest.raises(StoreError, match="expected 1 to 96"):
        store.read([0], "fewshot", 97)
    with pytest.raises(StoreError, match="at least one"):
        store.read([], "fewshot")
    with pytest.raises(StoreError, match="no teacher store there"):
        TeacherStore.open(str(tmp_path / "nothing"))
    with pytest.raises(StoreError, match="build-teacher-cache"):
        TeacherStore.open(str(tmp_path))
    with pytest.raises(StoreError, match=r"example 'nope': not in the store; its ids look like nli/en/train/0"):
        store.examples.index_of("nope")
    with pytest.raises(StoreError, match=r"nosuch.*expected a directory or a URL"):
        TeacherStore.open("nosuch://x")


def test_a_file_where_the_store_should_be_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"mine")
    for place in ("file", "file/store"):
        for use in (TeacherStore.open, lambda url: stores.build(url, EXAMPLES)):
            with pytest.raises(StoreError, match=r"expected a directory, but .*/file is a file"):
                use(str(tmp_path / place))
    assert (tmp_path / "file").read_bytes() == b"mine"


def test_a_place_that_cannot_be_written_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(StoreError, match="--store /proc/store: cannot be created"):
        stores.build("/proc/store", EXAMPLES)
    monkeypatch.setattr("os.access", lambda *arguments: False)  # as for anyone but root in a read-only directory
    with pytest.raises(StoreError, match=f"{tmp_path} is not writable; choose"):
        open_objects(str(tmp_path / "a/store")).require_writable()
    assert not list(tmp_path.iterdir())


def test_a_store_that_cannot_be_begun_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"store\.shard_tokens: expected"):
        stores.build(str(tmp_path / "store"), EXAMPLES, shard_tokens=60, chunk_tokens=16)
    assert not list(tmp_path.iterdir())


def test_examples_that_a_store_cannot_keep_are_refused(tmp_path: Path) -> None:
    twice = [EXAMPLES[0], EXAMPLES[0]]
    with pytest.raises(StoreError, match="unique"):
        stores.build(str(tmp_path / "twice"), twice)
    with pytest.raises(StoreError, match="expected a task of nli and a language of en, hi, got pos in hi"):
        stores.build(str(tmp_path / "tasks"), EXAMPLES, tasks=("nli",))


def test_a_store_that_is_corrupt_names_view_shard_and_examples(url: str) -> None:
    store = TeacherStore.open(url)
    victim = next((Path(url) / "teachers/fewshot").glob("*/c/1*"))
    if victim.is_dir():
        victim = next(victim.rglob("*"))
    data = bytearray(victim.read_bytes())
    data[len(data) // 2] ^= 4
    victim.write_bytes(data)
    members = store.plan.examples_of(1)
    where = rf"view fewshot, shard 1, examples {members.start} to {members.stop - 1}"
    with pytest.raises(CorruptStoreError, match=where):
        store.read([members.start], "fewshot")
    assert any(where in problem for problem in verify(url))


def test_an_example_is_what_was_stored(url: str) -> None:
    store = TeacherStore.open(url)
    assert list(store.examples) == EXAMPLES
    assert store.examples[-1].id == EXAMPLES[-1].example_id
    for position in (-len(EXAMPLES) - 1, len(EXAMPLES)):
        with pytest.raises(IndexError, match=f"example {position}: expected 0 to {len(EXAMPLES) - 1}"):
            _ = store.examples[position]


def test_a_store_names_its_teacher_and_template_in_few_digits(tmp_path: Path) -> None:
    teacher, template = {"model": "Big-8B", "dtype": "float32"}, {"template": "f" * 64, "seed": 1}
    stores.build(str(tmp_path / "named"), EXAMPLES, teacher=teacher, identity=template)
    stores.build(str(tmp_path / "bare"), EXAMPLES, teacher={}, identity={})
    named, bare = (TeacherStore.open(str(tmp_path / name)).info for name in ("named", "bare"))
    assert (named.teacher_model, named.template_hash) == ("Big-8B", "f" * 64)
    assert (bare.teacher_model, bare.template_hash) == ("tiny", None)
    assert named.short_fingerprint == named.fingerprint[:8] != bare.short_fingerprint
