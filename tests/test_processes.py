"""The processes that other tests start are processes."""

from __future__ import annotations

import signal
from pathlib import Path

from tests import processes


def test_output_exit_code_and_environment_are_a_command_s(tmp_path: Path) -> None:
    done = processes.run("--version")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("logitbank 0.")
    missing = processes.run("inspect-cache", "--store", str(tmp_path / "none"))
    assert (missing.returncode, missing.stdout) == (2, "")
    assert missing.stderr.startswith(f"error: --store {tmp_path / 'none'}: no teacher store there")


def test_a_signal_ends_it(tmp_path: Path) -> None:
    running = processes.start("query-results", "--results", str(tmp_path), "shell")  # waits for its input
    running.send(signal.SIGKILL)
    assert running.wait().returncode == -signal.SIGKILL
