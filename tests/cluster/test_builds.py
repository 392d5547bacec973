"""Stores that actors of Ray fill: the bytes of a single process, whoever dies on the way."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from logitbank.cluster import Factory, RayOptions
from logitbank.storage import verify
from logitbank.teacher_cache.on_ray import fill_on_ray
from logitbank.teacher_cache.scoring import Tally
from tests.cluster.conftest import NODE
from tests.cluster.teachers import Settings, processes
from tests.teacher_cache.fakes import FakeTeacher, contents, fill


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, bytes], Tally]:
    path = tmp_path_factory.mktemp("alone") / "store"
    tally = fill(path, FakeTeacher())
    return contents(path), tally


def build(address: str, folder: Path, *, actors: int = 2, gpus: float = 0.0, **settings: Any) -> Tally:
    (folder / "traces").mkdir(exist_ok=True)
    factory = Factory("tests.cluster.teachers:make", Settings(folder / "store", folder / "traces", **settings))
    return fill_on_ray(str(folder / "store"), factory, RayOptions(address, actors, gpus))


@pytest.mark.parametrize("actors", [1, 3])
def test_any_number_of_actors_writes_what_one_process_writes(
    actors: int, address: str, alone: tuple[dict[str, bytes], Tally], tmp_path: Path, gone: Callable[[int], bool]
) -> None:
    tally = build(address, tmp_path, actors=actors, together=actors)
    assert contents(tmp_path / "store") == alone[0]
    assert (tally.tokens, tally.answer_tokens) == (alone[1].tokens, alone[1].answer_tokens)
    assert len(processes(tmp_path / "traces")) == actors
    assert all(map(gone, processes(tmp_path / "traces")))


def test_two_actors_killed_in_the_midst_of_shards_are_replaced(
    address: str, alone: tuple[dict[str, bytes], Tally], tmp_path: Path
) -> None:
    tally = build(address, tmp_path, deaths=2)
    assert contents(tmp_path / "store") == alone[0]
    assert (tmp_path / "traces" / "deaths").read_text() == "xx"
    assert len(processes(tmp_path / "traces")) in (3, 4)  # the last shards may be done before the fourth has begun
    assert tally.tokens == alone[1].tokens  # shards that count are counted once
    assert not verify(str(tmp_path / "store"))


def test_a_node_that_joins_is_used_and_one_that_is_killed_costs_its_shards_alone(
    head: Any, address: str, alone: tuple[dict[str, bytes], Tally], tmp_path: Path, gone: Callable[[int], bool]
) -> None:
    store, traces = tmp_path / "store", tmp_path / "traces"
    with ThreadPoolExecutor(max_workers=1) as beside:  # a node wants to be started by the main thread
        building = beside.submit(build, address, tmp_path, gpus=1)
        assert join_and_die(head, store, traces) == (1, 2)  # actors before and after the second node came
        building.result()
    assert contents(store) == alone[0]
    assert not verify(str(store))
    assert all(map(gone, processes(traces)))


def join_and_die(head: Any, store: Path, traces: Path) -> tuple[int, int]:
    """Add a node with a GPU once a shard is done, and kill it once it may have done some."""
    wait_for(lambda: len(processes(traces)) == 1)
    (traces / "hold").touch()
    before = len(processes(traces))
    node = head.add_node(num_cpus=1, num_gpus=1, **NODE)
    try:
        wait_for(lambda: len(processes(traces)) > before)
        (traces / "hold").unlink()
        wait_for(lambda: done(store) >= 6)
        return before, len(processes(traces))
    finally:
        head.remove_node(node, allow_graceful=False)
        (traces / "hold").unlink(missing_ok=True)


def done(store: Path) -> int:
    return len(list(store.glob("manifest/*/[0-9]*.json")))


def wait_for(condition: Callable[[], bool], seconds: float = 150) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)
