"""Reading in a known order: the rows of `read`, and no more work and memory than that order asks for."""

from __future__ import annotations

import dataclasses
import itertools
import shutil
import threading
from collections import Counter
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from logitbank.errors import CorruptStoreError, StoreError
from logitbank.storage import TeacherRows, TeacherStore, ViewRead, read_ahead
from tests.storage import stores

WINDOW = 4  # shards that are read together
EXAMPLES = 250
ROW_BYTES = 96 * 8 + 32


@dataclasses.dataclass
class Request:
    examples: list[int]


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> str:
    url = str(tmp_path_factory.mktemp("store"))
    stores.build(url, stores.records(EXAMPLES), views=("fewshot", "zeroshot"), shard_tokens=64, chunk_tokens=16)
    return url


@pytest.fixture
def counted(url: str, monkeypatch: pytest.MonkeyPatch) -> tuple[TeacherStore, Counter[tuple[str, int]]]:
    """The store, and how often each of its shards was decoded."""
    store, count = TeacherStore.open(url), Counter[tuple[str, int]]()
    decode_shard = TeacherStore.decode_shard

    def counting(
        store: TeacherStore, view: str, shard: int, top_k: int, wanted: np.ndarray
    ) -> Iterator[tuple[np.ndarray, TeacherRows]]:
        count[view, shard] += 1
        return decode_shard(store, view, shard, top_k, wanted)

    monkeypatch.setattr(TeacherStore, "decode_shard", counting)
    return store, count


def requests_of(store: TeacherStore, size: int = 5, seed: int = 0) -> list[Request]:
    """One pass in batches, shuffled inside windows of shards, as students read."""
    rng = np.random.default_rng(seed)
    shard = store.examples.answer_start // store.info.shard_tokens
    window = rng.permutation(store.info.shards)[shard] // WINDOW
    order = np.lexsort((rng.random(len(shard)), window)).tolist()
    return [Request(order[start : start + size]) for start in range(0, len(order), size)]


def rows_of(
    store: TeacherStore, requests: Sequence[Request], reads: Sequence[ViewRead], *, threads: int, tokens: int
) -> Generator[tuple[TeacherRows, ...]]:
    return read_ahead(
        store, requests, reads, lambda _, rows: rows, threads=threads, cache_bytes=tokens * ROW_BYTES * len(reads)
    )


def assert_same(got: TeacherRows, expected: TeacherRows) -> None:
    for field in dataclasses.fields(expected):
        ours, theirs = getattr(got, field.name), getattr(expected, field.name)
        assert ours.dtype == theirs.dtype, field.name
        assert np.array_equal(ours, theirs), field.name


@pytest.mark.parametrize("threads", [0, 1, 3])
@pytest.mark.parametrize("top_k", [None, 20, 1])
@pytest.mark.parametrize("tokens", [1, 300, 100_000])
def test_rows_are_those_of_read_at_any_number_of_threads_and_bytes(
    url: str, threads: int, top_k: int | None, tokens: int
) -> None:
    store = TeacherStore.open(url)
    requests = [*requests_of(store)[:30], Request([7]), Request([3, 3, EXAMPLES - 1, 0])]  # also twice in one request
    reads = [ViewRead("fewshot", top_k), ViewRead("zeroshot", 1)]
    got = list(rows_of(store, requests, reads, threads=threads, tokens=tokens))
    assert len(got) == len(requests)
    for request, both in zip(requests, got, strict=True):
        for rows, read in zip(both, reads, strict=True):
            assert_same(rows, store.read(request.examples, read.view, read.top_k))


@pytest.mark.parametrize("threads", [0, 2])
def test_each_shard_is_decoded_once_for_its_window(
    counted: tuple[TeacherStore, Counter[tuple[str, int]]], threads: int
) -> None:
    store, count = counted
    requests = requests_of(store) + requests_of(store, seed=1)
    for _ in rows_of(store, requests, [ViewRead("fewshot")], threads=threads, tokens=4 * WINDOW * 64):
        pass
    assert len(count) == store.info.shards > 4 * WINDOW
    assert max(count.values()) <= 2  # passes


@pytest.mark.parametrize("threads", [0, 2])
def test_a_window_larger_than_memory_is_decoded_a_few_times_not_once_for_each_request(
    counted: tuple[TeacherStore, Counter[tuple[str, int]]], threads: int
) -> None:
    store, count = counted
    requests = requests_of(store, size=2)
    for _ in rows_of(store, requests, [ViewRead("fewshot")], threads=threads, tokens=WINDOW * 64 // 2):
        pass
    needed = sum(len({store.plan.shard_of(i) for i in request.examples}) for request in requests)
    assert store.info.shards < count.total() < 4 * store.info.shards < needed


@pytest.mark.parametrize("threads", [0, 2])
def test_no_more_is_decoded_than_fits(counted: tuple[TeacherStore, Counter[tuple[str, int]]], threads: int) -> None:
    """Shards of requests that are far ahead stay closed until their turn comes."""
    store, count = counted
    requests = requests_of(store)
    reading = rows_of(store, requests, [ViewRead("fewshot")], threads=threads, tokens=4 * WINDOW * 64)
    next(reading)
    needed = len({store.plan.shard_of(i) for i in requests[0].examples})
    threading.Event().wait(0.3)  # threads go on by themselves
    assert count.total() == needed if threads == 0 else count.total() <= 3 * WINDOW
    reading.close()


@pytest.mark.parametrize("threads", [0, 2])
def test_without_a_view_requests_are_taken_as_they_are_needed(url: str, threads: int) -> None:
    asked: list[int] = []

    def requests() -> Iterator[Request]:
        for number in itertools.count():
            asked.append(number)
            yield Request([number % 9])

    reading = read_ahead(
        TeacherStore.open(url), requests(), [], lambda r, _: r.examples, threads=threads, cache_bytes=1 << 30
    )
    assert list(itertools.islice(reading, 20)) == [[number % 9] for number in range(20)]
    assert len(asked) < 40
    reading.close()


def test_threads_end_with_the_iterator(url: str) -> None:
    store = TeacherStore.open(url)
    before = set(threading.enumerate())
    for leave in ("exhausted", "closed", "dropped"):
        reading = rows_of(store, requests_of(store), [ViewRead("fewshot")], threads=3, tokens=1000)
        assert len(list(itertools.islice(reading, None if leave == "exhausted" else 2))) > 1
        assert (set(threading.enumerate()) == before) == (leave == "exhausted")
        if leave == "closed":
            reading.close()
        del reading
        assert set(threading.enumerate()) == before, leave


@pytest.mark.parametrize("threads", [0, 2])
def test_a_damaged_shard_is_reported_when_it_is_reached_and_once(url: str, tmp_path: Path, threads: int) -> None:
    copy = tmp_path / "store"
    shutil.copytree(url, copy)
    damaged = copy / "teachers/fewshot/codes/c/9/1"
    data = bytearray(damaged.read_bytes())
    data[len(data) // 2] ^= 1
    damaged.write_bytes(data)
    store = TeacherStore.open(str(copy))
    requests = [Request(list(store.plan.examples_of(shard))) for shard in range(12)]
    reading = rows_of(store, requests, [ViewRead("fewshot")], threads=threads, tokens=100_000)
    assert len(list(itertools.islice(reading, 9))) == 9
    with pytest.raises(CorruptStoreError, match=r"codes/c/9/1 .*damaged.*delete manifest/fewshot/9\.json"):
        next(reading)
    assert list(reading) == []


@pytest.mark.parametrize("threads", [0, 2])
def test_errors_of_whoever_asks_come_in_their_turn(url: str, threads: int) -> None:
    store = TeacherStore.open(url)

    def requests() -> Iterator[Request]:
        yield from requests_of(store)[:3]
        raise ValueError("no more")

    reading = read_ahead(store, requests(), [], lambda asked, _: asked, threads=threads, cache_bytes=1 << 20)
    assert len(list(itertools.islice(reading, 3))) == 3
    with pytest.raises(ValueError, match="no more"):
        next(reading)

    def make(asked: Request, rows: tuple[TeacherRows, ...]) -> int:
        return 1 // (len(asked.examples) - 1)

    few = [Request([0, 1]), Request([1]), Request([2, 3])]
    reading = read_ahead(store, few, [ViewRead("fewshot")], make, threads=threads, cache_bytes=1 << 20)
    assert next(reading) == 1
    with pytest.raises(ZeroDivisionError):
        next(reading)


def test_what_a_store_does_not_have_is_refused(url: str) -> None:
    store = TeacherStore.open(url)
    for read, says in ((ViewRead("other"), "no such view"), (ViewRead("fewshot", 97), "top_k: expected 1 to 96")):
        with pytest.raises(StoreError, match=says):
            next(rows_of(store, requests_of(store), [read], threads=1, tokens=1000))
