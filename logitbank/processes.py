"""Commands that run as processes of their own."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence

from logitbank.command import Terminated
from logitbank.errors import LogitbankError


def run_process(command: Sequence[str]) -> None:
    """Run a command to its end; a signal that ends this process ends that one first.

    Raises:
        LogitbankError: the command failed; it has said why.
    """
    process = subprocess.Popen(command)
    try:
        code = process.wait()
    except KeyboardInterrupt as stop:
        if isinstance(stop, Terminated):  # Ctrl-C reaches it by itself
            process.terminate()
        process.wait()
        raise
    if code:
        raise LogitbankError(
            f"a stage failed with exit code {code} (its error is above); run the same command to resume"
        )
