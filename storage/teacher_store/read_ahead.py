"""Reading in an order that is known beforehand: threads decode a shard once for all that is asked of it next.

A shard is decoded when the first request that needs it comes near, and its rows go to every request in sight. So what
is in memory are rows that somebody asked for and has not got yet, each once, and their number is bounded by how far is
looked ahead. Within that, a shard that many requests share is decoded once; where they reach further, it is decoded
again each time they have moved on by most of that distance, never once for each of them.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from logitbank.storage.teacher_store.reader import TeacherStore
from logitbank.storage.teacher_store.rows import TeacherRows

SHARDS_AHEAD = 8  # as many rows as these hold lie between a request and the first whose shards are decoded for it
MADE_AHEAD = 4  # finished results for each thread
PATIENCE = 5.0  # seconds for threads to end what they are at


class Request(Protocol):
    """Attributes: `examples` are positions in `table(view)` of every view that is read."""

    @property
    def examples(self) -> Sequence[int] | NDArray[Any]: ...


Asked = TypeVar("Asked", bound=Request)
Made = TypeVar("Made")


@dataclass(frozen=True)
class ViewRead:
    """What every request reads of one view.

    Attributes:
        view: its name.
        top_k: how many ranks, up to the stored K; None for all. With fewer, draws are left out.
    """

    view: str
    top_k: int | None = None


def read_ahead(
    store: TeacherStore,
    requests: Iterable[Asked],
    reads: Sequence[ViewRead],
    make: Callable[[Asked, tuple[TeacherRows, ...]], Made],
    *,
    threads: int,
    cache_bytes: int,
) -> Generator[Made]:
    """What `make` makes of each request and its rows, in order.

    Rows are those of `TeacherStore.read`, bit for bit. Errors of a shard, of `make` or of `requests` are raised where
    the first request that they concern would come, and end the iteration. Threads end with the iterator: exhaust,
    close or drop it.

    Args:
        store: what to read.
        requests: which examples, taken from the iterable as far ahead as rows are decoded.
        reads: the views that every request reads; none if `make` needs no rows.
        make: called for one request at a time, in order, in any of the threads.
        threads: how many decode; 0 decodes in the caller's, when a result is asked for.
        cache_bytes: most bytes of decoded rows in memory, beside one chunk per thread and the rows of one request.

    Raises:
        StoreError, CorruptStoreError: as `TeacherStore.read`.
    """
    work = _Work(store, requests, reads, make, threads, cache_bytes)
    workers = [threading.Thread(target=work.run, daemon=True, name=f"read-ahead-{i}") for i in range(threads)]
    try:
        for worker in workers:
            worker.start()
        while (entry := work.take()) is not None:
            made = entry.made
            del entry  # its rows live as long as what was made of them
            yield made
    finally:
        work.stop()
        for worker in workers:
            worker.join(PATIENCE)  # one that waits for a dead network is left to end with the process


@dataclass(eq=False)
class _Entry(Generic[Asked, Made]):
    """A request on its way: `pending` shards are still to give it rows."""

    request: Asked | None
    start: int  # tokens of all requests before it
    tokens: int
    pending: int = 0
    rows: tuple[TeacherRows, ...] | None = None
    made: Any = None
    is_made: bool = False
    error: BaseException | None = None

    @property
    def is_ready(self) -> bool:
        return self.pending == 0 and not self.is_made and self.error is None

    @property
    def is_over(self) -> bool:
        return self.is_made or (self.error is not None and self.pending == 0)


@dataclass(eq=False)
class _Wants:
    """Rows of one shard under one read that no thread has decoded: an example's go from `row` to `place`."""

    entries: list[_Entry[Any, Any]] = field(default_factory=list)
    row: list[NDArray[np.int64]] = field(default_factory=list)
    place: list[NDArray[np.int64]] = field(default_factory=list)
    length: list[NDArray[np.int64]] = field(default_factory=list)


class _Work(Generic[Asked, Made]):
    """What is asked for, and the threads' agreement on who does what; all of it under one lock."""

    def __init__(
        self,
        store: TeacherStore,
        requests: Iterable[Asked],
        reads: Sequence[ViewRead],
        make: Callable[[Asked, tuple[TeacherRows, ...]], Made],
        threads: int,
        cache_bytes: int,
    ) -> None:
        self._store = store
        self._requests = iter(requests)
        self._reads = [(read.view, store.check_top_k(read.top_k)) for read in reads]
        self._plans = [store.plan_of(view) for view, _ in self._reads]  # reads what is read first, before any thread
        self._make = make
        self._threads = threads
        row_bytes = sum(_row_bytes(store, top_k) for _, top_k in self._reads)
        self._sight = max(1, cache_bytes // max(1, row_bytes))  # tokens ahead that are known
        self._near = min(self._sight // 4, SHARDS_AHEAD * store.info.shard_tokens)  # … whose shards are decoded
        self._changed = threading.Condition()
        self._stopped = False
        self._planned = self._taken = 0  # tokens
        self._more = True
        self._entries: deque[_Entry[Asked, Made]] = deque()
        self._unmade: deque[_Entry[Asked, Made]] = deque()
        self._making = False
        self._wants: dict[tuple[int, int], _Wants] = {}  # by read and shard, in the order of the first that needs it

    def take(self) -> _Entry[Asked, Made] | None:
        """The next result, or None after the last; raises what went wrong with it."""
        with self._changed:
            while True:
                self._plan()
                if not self._entries:
                    return None
                if self._entries[0].is_over:
                    break
                if self._threads:
                    self._changed.wait()
                else:
                    self._do_one(self._next_job())
            entry = self._entries.popleft()
            self._taken += entry.tokens
            self._changed.notify_all()  # further shards are near, and there is room for a result
        if entry.error is not None:
            raise entry.error
        return entry

    def run(self) -> None:
        """What a thread does."""
        with self._changed:
            while not self._stopped:
                job = self._next_job()
                if job is None:
                    self._changed.wait()
                else:
                    self._do_one(job)

    def stop(self) -> None:
        """Let all threads end."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    def _plan(self) -> None:
        """Take requests in sight, at least one."""
        before = len(self._entries)
        while self._more and (not self._entries or self._is_room()):
            try:
                request = next(self._requests, None)
                if request is None:
                    self._more = False
                else:
                    self._add(request)
            except Exception as error:
                self._more = False
                self._entries.append(_Entry(None, self._planned, 0, error=error))
        if len(self._entries) > before:
            self._changed.notify_all()

    def _is_room(self) -> bool:
        if not self._reads:
            return len(self._entries) < MADE_AHEAD * self._threads
        return self._planned - self._taken < self._sight

    def _add(self, request: Asked) -> None:
        entry: _Entry[Asked, Made] = _Entry(request, self._planned, 0)
        examples = np.asarray(request.examples, dtype=np.int64)
        for read, plan in enumerate(self._plans):
            length = plan.answer_length[examples].astype(np.int64)
            place = np.cumsum(length) - length
            entry.tokens = int(length.sum())
            shard, row = np.divmod(plan.answer_start[examples], plan.shard_tokens)
            for number in np.unique(shard).tolist():
                own = shard == number
                wants = self._wants.setdefault((read, number), _Wants())
                wants.entries.append(entry)
                wants.row.append(row[own])
                wants.place.append(place[own])
                wants.length.append(length[own])
                entry.pending += 1
        self._planned += entry.tokens
        self._entries.append(entry)
        self._unmade.append(entry)

    def _next_job(self) -> Callable[[], None] | None:
        """What is most urgent and nobody does: a result whose rows are there, else the next shard."""
        if self._unmade and not self._making and self._unmade[0].is_ready and self._may_make():
            return self._make_next
        key = next(iter(self._wants), None)
        if key is None:
            return None
        first = self._wants[key].entries[0]
        if first is not self._entries[0] and first.start - self._taken > self._near:
            return None
        return lambda: self._decode(*key, self._wants.pop(key))

    def _may_make(self) -> bool:
        made = len(self._entries) - len(self._unmade)
        return made < MADE_AHEAD * max(1, self._threads)

    def _do_one(self, job: Callable[[], None] | None) -> None:
        assert job is not None, "what comes next waits for nobody"
        job()
        self._changed.notify_all()

    def _make_next(self) -> None:
        entry = self._unmade.popleft()
        self._making = True
        self._changed.release()
        try:
            assert entry.request is not None
            entry.made = self._make(entry.request, entry.rows or ())
            entry.rows = None
            entry.is_made = True
        except Exception as error:
            entry.error = error
        finally:
            self._changed.acquire()
            self._making = False

    def _decode(self, read: int, shard: int, wants: _Wants) -> None:
        for entry in wants.entries:
            if entry.rows is None:
                entry.rows = tuple(_empty(self._store, top_k, entry.tokens) for _, top_k in self._reads)
        self._changed.release()
        error = None
        try:
            self._give_out(read, shard, wants)
        except Exception as raised:
            error = raised
        finally:
            self._changed.acquire()
            for entry in wants.entries:
                entry.pending -= 1
                entry.error = entry.error or error

    def _give_out(self, read: int, shard: int, wants: _Wants) -> None:
        """Decode a shard and copy its rows to the requests that need them."""
        view, top_k = self._reads[read]
        row, place, length = (np.concatenate(parts) for parts in (wants.row, wants.place, wants.length))
        order = np.argsort(row, kind="stable")
        owner = np.repeat(np.arange(len(wants.entries)), [len(rows) for rows in wants.row])[order]
        row, place, end = row[order], place[order], (row + length)[order]  # no two examples overlap: ends ascend too
        change = np.zeros(self._plans[read].used_rows(shard) + 1, dtype=np.int64)
        np.add.at(change, row, 1)
        np.add.at(change, end, -1)
        wanted = np.cumsum(change[:-1]) > 0
        before = np.cumsum(wanted)  # rows that are wanted, up to each
        names = _columns(self._store, top_k)
        targets = [[getattr(entry.rows[read], name) for name in names] for entry in wants.entries if entry.rows]
        for rows, decoded in self._store.decode_shard(view, shard, top_k, wanted):
            if self._stopped:
                return
            sources = [getattr(decoded, name) for name in names]
            low, high = int(rows[0]), int(rows[-1]) + 1
            runs = slice(np.searchsorted(end, low, "right"), np.searchsorted(row, high))
            first, last = np.maximum(row[runs], low), np.minimum(end[runs], high)
            found, to = before[first] - before[low], place[runs] + first - row[runs]
            for target, i, j, count in zip(
                *map(np.ndarray.tolist, (owner[runs], found, to, last - first)), strict=True
            ):
                for values, source in zip(targets[target], sources, strict=True):
                    values[j : j + count] = source[i : i + count]


def _columns(store: TeacherStore, top_k: int) -> list[str]:
    """The fields of rows that a store holds for so many ranks."""
    drawn = store.info.draws and top_k == store.info.top_k
    return [f.name for f in fields(TeacherRows) if drawn or not f.name.startswith("sample_")]


def _empty(store: TeacherStore, top_k: int, tokens: int) -> TeacherRows:
    """Rows to be filled."""
    shapes = {"token_ids": (tokens, top_k), "logits": (tokens, top_k)}
    shapes |= dict.fromkeys(("sample_ids", "sample_counts"), (tokens, store.info.draws))
    counts = ("token_ids", "gold_rank", "sample_ids", "sample_counts")
    arrays: dict[str, Any] = {
        name: np.empty(shapes.get(name, (tokens,)), np.int32 if name in counts else np.float32)
        for name in _columns(store, top_k)
    }
    return TeacherRows(**arrays)


def _row_bytes(store: TeacherStore, top_k: int) -> int:
    return 8 * top_k + 8 * store.info.draws + 32
