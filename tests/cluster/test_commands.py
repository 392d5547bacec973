"""`--ray` as users give it: real models, a killed driver, and what is wrong in one line."""

from __future__ import annotations

import signal
import socket
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from logitbank.__main__ import main
from logitbank.configs import load_config
from logitbank.scripts.demo_world import Pretraining, World, make_mirror, make_model
from logitbank.storage.results.catalogue import Catalogue
from logitbank.teacher_cache.build import build_store
from tests import processes
from tests.teacher_cache.fakes import contents

ROWS = "SELECT * EXCLUDE (run) FROM predictions ORDER BY task, language, example_id"


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A tiny model, its data, two tasks in two languages."""
    folder = tmp_path_factory.mktemp("world")
    make_mirror(folder / "hub", World(train_rows=24, eval_rows=12))
    make_model(folder / "model", Pretraining(layers=1, width=32, steps=1, batch=1))
    return [
        f"model.name={folder / 'model'}",
        f"data.mirror={folder / 'hub'}",
        "tasks=[nli,pos]",
        "languages=[en,es]",
        "data.max_train_per_task=12",
        "data.max_validation_per_task=2",
        "fewshot.num_demonstrations={nli: 2, pos: 2}",
        "training.global_batch_size=4",
        "training.micro_batch_size=4",
        "training.max_steps=2",
        "training.warmup_steps=1",
        "evaluation.max_samples=3",
        "teacher.top_k=8",
        "store.shard_tokens=8",
        "store.chunk_tokens=8",
    ]


@pytest.fixture(scope="module")
def alone(settings: list[str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    path = tmp_path_factory.mktemp("alone") / "store"
    build_store(load_config(["demo"], settings), str(path), ("fewshot",))
    return contents(path)


def test_students_share_a_gpu_and_their_teacher_writes_what_it_writes_alone(
    settings: list[str], alone: dict[str, bytes], address: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = ["study", "lambda-sweep", "--output", str(tmp_path), "--config", "demo", "--lambda", "0", "0.1"]
    main([*sweep, "--ray", "--ray-address", address, "--gpus-per-student", "0.25", "--students", "2", *settings])
    assert contents(tmp_path / "store") == alone
    printed = capsys.readouterr().out
    assert printed.count("] finetuned ") == 4  # cells
    assert printed.count("] distilled ") == 4
    assert printed.strip().splitlines()[-1].startswith("report")
    cells = Catalogue([tmp_path / "results"]).rows("SELECT DISTINCT condition, task, language FROM metrics")
    assert len(cells) == 8


def test_actors_answer_what_one_process_answers(
    settings: list[str], address: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["evaluate-model", "--config", "demo", "--condition", "base", *settings]
    main([*asked, "--results", str(tmp_path / "shared"), "--ray", "--ray-address", address, "--actors", "2"])
    lines = [line.split(" in ")[0].split("] ")[1] for line in capsys.readouterr().out.splitlines() if line[0] == "["]
    main([*asked, "--results", str(tmp_path / "alone")])
    expected = [line.split(" in ")[0].split("] ")[1] for line in capsys.readouterr().out.splitlines() if line[0] == "["]
    assert sorted(lines) == sorted(expected)
    assert len(lines) == 4
    rows = Catalogue([tmp_path / "alone"]).rows(ROWS)
    assert Catalogue([tmp_path / "shared"]).rows(ROWS) == rows
    assert len(rows) == 12


def family(mark: str) -> Iterator[psutil.Process]:
    """All living processes that were started with this mark in their environment."""
    for process in psutil.process_iter():
        try:
            if process.environ().get("TEST_MARK") == mark and process.status() != psutil.STATUS_ZOMBIE:
                yield process
        except psutil.Error:
            continue


def test_a_driver_that_is_stopped_or_killed_leaves_nothing_running_and_is_run_again(
    settings: list[str], alone: dict[str, bytes], address: str, tmp_path: Path
) -> None:
    store, mark = tmp_path / "store", uuid.uuid4().hex
    build = ["build-teacher-cache", "--config", "demo", "--view", "fewshot", "--store", str(store), *settings, "--ray"]
    for number, code in ((signal.SIGTERM, 143), (signal.SIGKILL, -9)):
        done = shards(store)
        running = processes.start(*build, env={"TEST_MARK": mark})
        while running.alive and shards(store) <= done:
            time.sleep(0.005)
        running.send(number)
        ended = running.wait()
        assert ended.returncode == code, ended.stderr
        if number == signal.SIGTERM:  # actors of a killed driver may do some shards more
            assert ended.stderr.splitlines()[-1] == "Terminated; run the same command to resume"
            assert len(contents(store)) < len(alone)
        deadline = time.monotonic() + 120
        while left := [process.cmdline() for process in family(mark)]:
            assert time.monotonic() < deadline, left
            time.sleep(0.1)
    main([*build, "--ray-address", address, "--gpus-per-actor", "0"])
    assert contents(store) == alone


def shards(store: Path) -> int:
    """How many are done."""
    return len(list(store.glob("manifest/*/[0-9]*.json")))


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["--actors", "2"], "--actors: needs --ray; add it, or leave --actors out"),
        (["--gpus-per-actor", "1"], "--gpus-per-actor: needs --ray"),
        (["--ray-address", "auto"], "--ray-address: needs --ray"),
        (["--ray", "--worker", "0/2"], "--worker: --ray distributes the work itself; use one of the two"),
        (["--ray", "--ray-address", "127.0.0.1:1"], "--ray-address 127.0.0.1:1: cannot be reached: Connection refused"),
        (["--ray", "--ray-address", "nowhere.invalid:6379"], "--ray-address nowhere.invalid:6379: cannot be reached: "),
        (
            ["--ray", "--ray-address", "host:port"],
            "--ray-address host:port: expected auto, HOST:PORT or ray://HOST:PORT",
        ),
    ],
)
def test_what_is_wrong_is_one_line(
    command: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["build-teacher-cache", "--store", str(tmp_path / "store"), "model.name=m", *command])
    assert ended.value.code == 2
    complaint = capsys.readouterr().err.splitlines()
    assert len(complaint) == 1
    assert complaint[0].startswith(f"error: {message}")
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize("scheme", ["", "ray://"])
def test_an_address_that_never_answers_is_given_up(
    scheme: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        where = f"{scheme}127.0.0.1:{silent.getsockname()[1]}"
        build = ["build-teacher-cache", "--store", str(tmp_path / "store"), "model.name=m"]
        with pytest.raises(SystemExit) as ended:
            main([*build, "--ray", "--ray-address", where, "--ray-timeout", "0.4"])
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith(f"error: --ray-address {where}: no answer in 0.2 s; is Ray running there")


def test_ray_that_is_not_installed_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(SystemExit):
        main(["build-teacher-cache", "--store", str(tmp_path / "store"), "model.name=m", "--ray"])
    assert capsys.readouterr().err == 'error: --ray: Ray is not installed; pip install "logitbank[ray]"\n'


def test_a_model_or_data_that_an_actor_lacks_is_said_once(
    settings: list[str], address: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    build = ["build-teacher-cache", "--config", "demo", "--store", str(tmp_path / "store"), *settings]
    with pytest.raises(SystemExit) as ended:
        main([*build, f"data.mirror={tmp_path / 'none'}", "--ray", "--ray-address", address, "--actors", "3"])
    assert ended.value.code == 2
    complaint = capsys.readouterr().err.splitlines()[-1]
    with pytest.raises(SystemExit):
        main([*build, f"data.mirror={tmp_path / 'none'}"])
    assert complaint == capsys.readouterr().err.splitlines()[-1]
