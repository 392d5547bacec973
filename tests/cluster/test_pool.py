"""The pool itself, with engines that load nothing: order, retries, and what it says when it cannot go on."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from logitbank.cluster import Cluster, Factory, Item, Job, RayOptions, Report, Room, connect, pool, room, run_pool
from logitbank.errors import ClusterError, ConfigError
from tests.cluster.engines import Settings


@pytest.fixture(scope="module")
def cluster(address: str) -> Iterator[Cluster]:
    with connect(RayOptions(address), 1) as connected:
        yield connected


def run(
    cluster: Cluster, folder: Path, items: list[Item], *, actors: int = 2, asks: bool = True, **settings: Any
) -> tuple[Report, list[tuple[str, int, int]]]:
    """The report, and each item's name, actor and process in the order in which they ended."""
    done: list[tuple[str, int, int]] = []
    factory = Factory("tests.cluster.engines:make", Settings(folder, tuple(items), **settings))
    job = Job(factory, "test", "seconds", lambda item, value: done.append((item.name, *value)))
    return run_pool(cluster, Room(actors, 1, 0), job, None if asks else items, seconds=120), done


def test_the_costliest_come_first_and_all_are_done_once(
    cluster: Cluster, tmp_path: Path, gone: Callable[[int], bool]
) -> None:
    items = [Item(f"item {cost}", cost, ("sleep", 0.05)) for cost in (1, 3, 8, 2)]
    report, done = run(cluster, tmp_path, items, actors=1)
    assert [name for name, *_ in done] == ["item 8", "item 3", "item 2", "item 1"]
    assert (report.items, report.deaths) == (4, 0)
    assert report.seconds > 0.2
    assert {path.name for path in tmp_path.iterdir()} == {"opened-1", "closed-1"}
    assert all(gone(process) for *_, process in done)


def test_an_engine_stays_with_the_group_that_it_has_begun(cluster: Cluster, tmp_path: Path) -> None:
    items = [Item(f"{group}{cost}", cost, ("sleep", 0.05), group) for cost in (4, 3, 2, 1) for group in "ab"]
    _, done = run(cluster, tmp_path, items, actors=1, asks=False)
    assert [name for name, *_ in done] == ["a4", "a3", "a2", "a1", "b4", "b3", "b2", "b1"]


def test_what_engines_print_is_printed_and_what_they_all_log_is_said_once(
    cluster: Cluster, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "logitbank"):
        run(cluster, tmp_path, [Item(f"{n}", 1, ("say", "a line")) for n in range(3)], actors=1)
    assert capsys.readouterr().out == "a line\n" * 3
    assert [record.getMessage() for record in caplog.records].count("logged a line") == 1


def test_a_line_that_a_look_took_is_printed_though_its_item_was_the_last(
    cluster: Cluster, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool, "POLL", 0.1)
    run(cluster, tmp_path, [Item("item", 1, ("say and be heard", "a line"))], actors=1)
    assert capsys.readouterr().out == "a line\n"


def test_an_item_that_kills_three_actors_ends_the_job_and_is_named(
    cluster: Cluster, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    items = [Item("the bad one", 9, ("die", 99)), *(Item(f"{n}", 1, ("sleep", 0.05)) for n in range(3))]
    with pytest.raises(ClusterError, match=r"^the bad one: 3 actors died on it, most recently actor \d+ on \S+: its"):
        run(cluster, tmp_path, items)
    assert (tmp_path / "deaths").read_text() == "xxx"
    assert sum("the bad one is given out again" in record.getMessage() for record in caplog.records) == 2


@pytest.mark.parametrize(
    ("what", "message"), [(("raise", "field: expected x, got y"), "field: expected x, got y"), (("bug", "1/0"), "")]
)
def test_an_item_that_fails_ends_the_job_with_its_message(
    what: tuple[str, str], message: str, cluster: Cluster, tmp_path: Path
) -> None:
    with pytest.raises(ClusterError, match=f"^{message or 'item: ZeroDivisionError: 1/0'}$"):
        run(cluster, tmp_path, [Item("item", 1, what)], actors=1)
    assert (tmp_path / "closed-1").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"refuses": "model.name: no such model"}, "model.name: no such model"), ({"bug": True}, "ZeroDivisionError: no")],
)
def test_engines_that_cannot_be_made_say_so_once(
    settings: dict[str, Any], message: str, cluster: Cluster, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    items = [Item(f"{n}", 1, ("sleep", 0.05)) for n in range(3)]
    with pytest.raises(ClusterError, match=f"^{message}"):
        run(cluster, tmp_path, items, actors=3, asks=False, **settings)
    assert not any("no such model" in record.getMessage() for record in caplog.records)


def test_a_bad_engine_beside_good_ones_is_left_out(
    cluster: Cluster, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    items = [Item("first", 9, ("await", "refused-2")), *(Item(f"{n}", 1, ("sleep", 0.4)) for n in range(3))]
    _, done = run(cluster, tmp_path, items, refuses="data.mirror: no such directory", refused=(2,))
    assert len(done) == 4
    assert {actor for _, actor, _ in done} == {1}
    assert [record.getMessage() for record in caplog.records] == [
        "data.mirror: no such directory; skipped, the other actors continue"
    ]


def test_no_room_is_one_line(cluster: Cluster, tmp_path: Path) -> None:
    factory = Factory("tests.cluster.engines:make", Settings(tmp_path, (Item("item", 1, ("sleep", 0.1)),)))
    with pytest.raises(ClusterError, match=r"no room for any of 1 actor of 7 GPUs in \d+ s; Ray at \S+: 1 node, 1 GPU"):
        run_pool(cluster, Room(1, 1, 7), Job(factory, "test", "items"), None, seconds=1.5)


def test_an_engine_with_processes_of_its_own_gets_a_group_of_gpus(cluster: Cluster, tmp_path: Path) -> None:
    factory = Factory("tests.cluster.engines:make", Settings(tmp_path, (Item("item", 1, ("group", 0)),)))
    found: list[Any] = []
    job = Job(factory, "test", "items", lambda item, value: found.append(value))
    run_pool(cluster, Room(1, 1, 1, bundles=True), job, None, seconds=120)
    assert found == [[{"CPU": 1.0, "GPU": 1.0}]]


def machine(cpus: float, gpus: float, *, local: bool = True) -> Cluster:
    node = {"Alive": True, "NodeID": "a", "Resources": {"CPU": cpus, "GPU": gpus}}
    return Cluster(SimpleNamespace(nodes=lambda: [node]), local, "here")


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (RayOptions(), Room(4, 1, 1)),
        (RayOptions(gpus=0.25), Room(8, 1, 0.25)),
        (RayOptions(gpus=2), Room(2, 1, 2)),
        (RayOptions(gpus=0), Room(1, 1, 0)),
        (RayOptions(gpus=0, actors=2), Room(2, 4, 0)),
        (RayOptions(gpus=0.5, actors=3, cpus=2), Room(3, 2, 0.5)),
    ],
)
def test_actors_fill_the_machine_unless_told(options: RayOptions, expected: Room) -> None:
    assert room(machine(8, 4), options) == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (RayOptions(actors=5), "--actors 5 --gpus-per-actor 1: needs 5 GPUs, this machine has 4; ask for fewer"),
        (RayOptions(actors=3, gpus=2), "--actors 3 --gpus-per-actor 2: needs 6 GPUs, this machine has 4"),
        (RayOptions(actors=9, gpus=0.5, per="student"), "--students 9 --gpus-per-student 0.5: needs 5 GPUs"),
        (RayOptions(actors=3, gpus=1, cpus=3), "--actors 3 --cpus-per-actor 3: needs 9 cores, this machine has 8"),
    ],
)
def test_more_than_this_machine_has_is_refused(options: RayOptions, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        room(machine(8, 4), options)


def test_a_cluster_may_grow_to_what_was_asked() -> None:
    assert room(machine(8, 0, local=False), RayOptions(actors=5, gpus=1)) == Room(5, 1, 1)


def test_a_tensor_parallel_teacher_has_its_gpus_where_they_are() -> None:
    assert room(machine(8, 4), RayOptions(), gpus=2.0, bundles=True) == Room(2, 1, 2.0, bundles=True)
