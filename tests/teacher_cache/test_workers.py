"""Many workers fill one store, some are killed, memory runs out: what is written stays the same."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from logitbank.configs import ConfigError
from logitbank.errors import MemoryExhaustedError
from logitbank.models.workers import find_worker
from logitbank.sequences import AnsweredSequence
from logitbank.storage import TeacherStore, verify
from logitbank.teacher_cache.engines.base import Sequenced
from logitbank.teacher_cache.scoring import Tally, score
from tests.teacher_cache.fakes import PREFIX, TOP_K, FakeTeacher, configuration, contents, fill, small_questions

FORK = multiprocessing.get_context("fork")


def work(path: Path, worker: int, workers: int, dies_at_batch: int | None = None) -> None:
    """Body of a worker process; one that is to die does so by SIGKILL, in the midst of a shard."""
    batches = 0

    def before(batch: object) -> None:
        nonlocal batches
        batches += 1
        if batches == dies_at_batch:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(0.01)

    fill(path, FakeTeacher(before), worker=worker, workers=workers)


def run_workers(
    path: Path, workers: int, *, dying: dict[int, int] | None = None, killed: int | None = None
) -> list[int]:
    """Exit codes of all workers; `killed` is killed from outside as soon as any shard is done."""
    processes = [
        FORK.Process(target=work, args=(path, worker, workers, (dying or {}).get(worker))) for worker in range(workers)
    ]
    for process in processes:
        process.start()
    if killed is not None:
        while processes[killed].is_alive() and not list(path.glob("manifest/*/[0-9]*.json")):
            time.sleep(0.005)
        processes[killed].kill()
    for process in processes:
        process.join(120)
    codes = [process.exitcode for process in processes]
    assert None not in codes
    return [int(code or 0) for code in codes]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    path = tmp_path_factory.mktemp("alone") / "store"
    tally = fill(path, FakeTeacher())
    assert tally.reused_tokens == PREFIX * 100
    assert not verify(str(path))
    return contents(path)


def test_four_workers_write_what_one_writes(alone: dict[str, bytes], tmp_path: Path) -> None:
    assert run_workers(tmp_path / "store", 4) == [0, 0, 0, 0]
    assert contents(tmp_path / "store") == alone


def test_a_view_says_whether_its_teacher_read_what_students_read(tmp_path: Path) -> None:
    fill(tmp_path, FakeTeacher())
    store = TeacherStore.open(str(tmp_path))
    said = {view: store.view_attributes(view)["sequences"] for view in store.views}
    assert said == {"fewshot": "context", "zeroshot": "student"}


def test_killed_workers_cost_their_shards_and_any_others_complete_the_store(
    alone: dict[str, bytes], tmp_path: Path
) -> None:
    path = tmp_path / "store"
    codes = run_workers(path, 4, dying={1: 3, 3: 1}, killed=2)
    assert codes[0] == 0
    assert codes[1] == codes[3] == -signal.SIGKILL
    store = TeacherStore.open(str(path))
    missing = {view: store.missing_shards(view) for view in ("fewshot", "zeroshot") if view in store.views}
    assert any(missing.values())
    # No shard of the worker that ended is missing; whatever else is there is whole.
    assert all(shard % 4 for shards in missing.values() for shard in shards)
    done = {key: data for key, data in contents(path).items() if not key.endswith(".partial")}
    assert done.items() <= alone.items()
    assert run_workers(path, 3) == [0, 0, 0]
    fill(path, FakeTeacher())  # alone: removes what killed writers left
    assert contents(path) == alone
    assert not verify(str(path))


def test_a_done_store_asks_the_teacher_nothing(tmp_path: Path) -> None:
    fill(tmp_path, FakeTeacher())

    def refuse(batch: object) -> None:
        raise AssertionError("scored again")

    assert fill(tmp_path, FakeTeacher(refuse)).tokens == 0


def test_running_out_of_memory_halves_the_budget_of_that_shard_and_records_it(
    alone: dict[str, bytes], tmp_path: Path
) -> None:
    tally = fill(tmp_path / "store", FakeTeacher(memory=210))
    written = contents(tmp_path / "store")
    assert {key for key in written if written[key] != alone[key]} == {
        key for key in written if b'"batch_tokens":200' in written[key] and key.startswith("manifest/")
    }
    fallen = [json.loads(data)["content"] for key, data in written.items() if written[key] != alone[key]]
    assert len(fallen) == tally.fallen_shards > 1
    assert {manifest["batch_tokens"] for manifest in fallen} == {200}


def test_the_rows_after_running_out_of_memory_are_those_of_the_lower_budget() -> None:
    items = [Sequenced(found.sequence, PREFIX) for found in small_questions(40).sequences["fewshot"]]
    seen: list[list[int]] = []
    advanced: list[int] = []
    tally = Tally()
    _, budget = score(items, FakeTeacher(seen_by(seen), memory=70), TOP_K, 1000, tally, advanced.append)
    assert budget == 62
    expected: list[list[int]] = []
    plain = Tally()
    score(items, FakeTeacher(seen_by(expected)), TOP_K, budget, plain)
    assert seen[-len(expected) :] == expected
    assert vars(tally) == vars(plain)
    assert sum(advanced) == tally.tokens


def seen_by(batches: list[list[int]]):  # type: ignore[no-untyped-def]
    return lambda batch: batches.append([len(item) for item in batch])


def test_a_sequence_that_does_not_fit_alone_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(
        MemoryExhaustedError, match=r"teacher.batch_tokens: a single sequence of up to \d+ tokens does not"
    ):
        fill(tmp_path, FakeTeacher(memory=5))


def test_padding_is_little_and_counted() -> None:
    rng = np.random.default_rng(0)
    items = [
        Sequenced(AnsweredSequence.answering(rng.integers(0, 60, length), [0]))
        for length in rng.lognormal(5, 0.5, 300).astype(int) + 10
    ]
    padded = 0

    def count(batch: list[Sequenced]) -> None:
        nonlocal padded
        padded += len(batch) * max(map(len, batch))

    tally = Tally()
    score(items, FakeTeacher(count), TOP_K, 8192, tally)
    assert tally.padded_tokens == padded
    assert tally.padding_waste == pytest.approx(1 - sum(map(len, items)) / padded)
    assert tally.padding_waste < 0.05


@pytest.mark.parametrize(
    ("argument", "environment", "expected"),
    [
        (None, {}, None),
        (None, {"RANK": "0", "WORLD_SIZE": "1"}, None),
        (None, {"SLURM_PROCID": "2", "SLURM_NTASKS": "4"}, None),
        ("2/5", {"RANK": "1", "WORLD_SIZE": "4"}, (2, 5)),
        (None, {"RANK": "3", "WORLD_SIZE": "4"}, (3, 4)),
        (None, {"SLURM_ARRAY_TASK_ID": "0", "SLURM_ARRAY_TASK_COUNT": "1"}, None),
        (None, {"SLURM_ARRAY_TASK_ID": "3", "SLURM_ARRAY_TASK_COUNT": "8", "SLURM_ARRAY_TASK_MIN": "0"}, (3, 8)),
        (None, {"SLURM_ARRAY_TASK_ID": "1", "SLURM_ARRAY_TASK_COUNT": "8", "SLURM_ARRAY_TASK_MIN": "1"}, (0, 8)),
        (
            None,
            {
                "SLURM_ARRAY_TASK_ID": "6",
                "SLURM_ARRAY_TASK_COUNT": "3",
                "SLURM_ARRAY_TASK_MIN": "2",
                "SLURM_ARRAY_TASK_STEP": "2",
                "RANK": "3",
                "WORLD_SIZE": "4",
            },
            (11, 12),
        ),
    ],
)
def test_who_this_process_is(
    argument: str | None, environment: dict[str, str], expected: tuple[int, int] | None
) -> None:
    worker = find_worker(argument, environment)
    assert (worker and (worker.index, worker.count)) == expected


@pytest.mark.parametrize("argument", ["3/3", "x/2", "1", "-1/2", "/"])
def test_a_worker_that_cannot_be(argument: str) -> None:
    with pytest.raises(ConfigError, match="--worker: expected I/N"):
        find_worker(argument, {})


def test_an_array_with_gaps_is_refused() -> None:
    environment = {"SLURM_ARRAY_TASK_ID": "7", "SLURM_ARRAY_TASK_COUNT": "3", "SLURM_ARRAY_TASK_MIN": "1"}
    with pytest.raises(ConfigError, match="expected a Slurm array without gaps"):
        find_worker(None, environment)


def test_arrays_whose_tasks_do_other_things_are_no_workers() -> None:
    environment = {"SLURM_ARRAY_TASK_ID": "1", "SLURM_ARRAY_TASK_COUNT": "3"}
    assert find_worker(None, environment, arrays=False) is None
    worker = find_worker(None, {**environment, "RANK": "1", "WORLD_SIZE": "2"}, arrays=False)
    assert worker is not None
    assert (worker.index, worker.count) == (1, 2)


def test_configuration_of_the_fakes_is_valid() -> None:
    assert configuration().teacher.top_k == TOP_K
