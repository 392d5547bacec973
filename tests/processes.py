"""Commands as processes of their own, forked from a server that has torch and transformers loaded already.

A fresh interpreter spends most of a test's time importing. `run` and `start` behave as the console script
would: own memory, own environment, own output, killed by a signal like any process. What a launcher does to
its processes is `run_ranks`. One test of each kind starts the real thing with `subprocess` all the same.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import signal
import socket
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.context import ForkServerProcess
from pathlib import Path

PRELOADED = (
    "torch",
    "torch.distributed",
    "transformers",
    "accelerate",
    "peft",
    "datasets",
    "logitbank.__main__",
    "logitbank.teacher_cache.build_command",
    "logitbank.student_train.train",
    "logitbank.evaluation.run",
    "transformers.models.qwen3.modeling_qwen3",
    "transformers.models.llama.modeling_llama",
)
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(list(PRELOADED))


@dataclass(frozen=True)
class Finished:
    """What a process left: exit code (negative: the signal that ended it) and what it printed."""

    returncode: int
    stdout: str
    stderr: str


class Running:
    """A process that was started."""

    def __init__(self, process: ForkServerProcess, folder: tempfile.TemporaryDirectory[str]) -> None:
        self._process = process
        self._folder = folder

    @property
    def pid(self) -> int:
        """Its process id."""
        assert self._process.pid is not None
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether it still runs."""
        return self._process.is_alive()

    def printed(self) -> str:
        """What it has written to standard output so far."""
        return (Path(self._folder.name) / "stdout").read_text()

    def complained(self) -> str:
        """What it has written to standard error so far."""
        return self._read("stderr")

    def send(self, number: signal.Signals) -> None:
        """Send it a signal."""
        os.kill(self.pid, number)

    def wait(self, timeout: float = 300) -> Finished:
        """Wait for its end; a process that takes longer is killed and an error."""
        self._process.join(timeout)
        if self._process.exitcode is None:
            self._process.kill()
            self._process.join()
            raise TimeoutError(f"still running after {timeout} s; standard error: {self._read('stderr')[-2000:]}")
        with self._folder:
            return Finished(self._process.exitcode, self._read("stdout"), self._read("stderr"))

    def _read(self, name: str) -> str:
        path = Path(self._folder.name) / name
        return path.read_text() if path.exists() else ""


def start(*arguments: str, env: Mapping[str, str] | None = None, cwd: Path | None = None) -> Running:
    """Start `logitbank ARGUMENTS…`, for example `start("train-student", "--config", …)`, or `python -m MODULE …`.

    Args:
        arguments: as on the command line.
        env: added to this process's environment.
        cwd: where it runs; default here.
    """
    folder = tempfile.TemporaryDirectory(prefix="process-")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **(env or {})}
    process = _CONTEXT.Process(
        target=_run_command, args=(list(arguments), environment, str(cwd or Path.cwd()), folder.name)
    )
    process.start()
    return Running(process, folder)


def run(
    *arguments: str, env: Mapping[str, str] | None = None, cwd: Path | None = None, timeout: float = 300
) -> Finished:
    """Run `logitbank ARGUMENTS…` to its end."""
    return start(*arguments, env=env, cwd=cwd).wait(timeout)


def start_ranks(ranks: int, *arguments: str, env: Mapping[str, str] | None = None) -> list[Running]:
    """Start as many processes of one command as `accelerate launch --cpu --num_processes RANKS` does."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shared = {
        "WORLD_SIZE": str(ranks),
        "LOCAL_WORLD_SIZE": str(ranks),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "ACCELERATE_USE_CPU": "true",
        **(env or {}),
    }
    return [start(*arguments, env={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}) for rank in range(ranks)]


def run_ranks(
    ranks: int, *arguments: str, env: Mapping[str, str] | None = None, timeout: float = 300
) -> list[Finished]:
    """Run them to their end, in the order of their ranks."""
    return [running.wait(timeout) for running in start_ranks(ranks, *arguments, env=env)]


def _run_command(arguments: Sequence[str], environment: Mapping[str, str], cwd: str, folder: str) -> None:
    """In the child: become the command."""
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    multiprocessing.set_start_method(None, force=True)  # its own children start as any command's do
    signal.signal(signal.SIGINT, signal.default_int_handler)  # multiprocessing's children ignore nothing of it
    for name, stream in (("stdout", sys.stdout), ("stderr", sys.stderr)):
        descriptor = os.open(Path(folder) / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
        stream.flush()
        os.dup2(descriptor, stream.fileno())
        os.close(descriptor)
    if arguments[0] == "-m":
        sys.argv = list(arguments[1:])
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
        return
    from logitbank.__main__ import main

    main(arguments)
