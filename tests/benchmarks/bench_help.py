"""Processor seconds of `--help`: what a command takes before it knows what to do.

    python -m tests.benchmarks.bench_help [--repeats 5]

Each command is a fresh interpreter; the least of several, so that other work on the machine does not count.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys

from logitbank.__main__ import GROUP
from logitbank.scripts.study import GROUP as STUDIES


def seconds(command: str) -> float:
    """Processor seconds of one call."""
    process = subprocess.Popen(
        [sys.executable, "-m", "logitbank", *command.split(), "--help"], stdout=subprocess.DEVNULL
    )
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"{command} --help ended with exit code {process.returncode}")
    return usage.ru_utime + usage.ru_stime


def main() -> None:
    """Time every command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    print("| command | seconds |\n| --- | ---: |")
    for command in [*GROUP.members, *(f"study {name}" for name in STUDIES.members)]:
        print(f"| {command} | {min(seconds(command) for _ in range(arguments.repeats)):.2f} |", flush=True)


if __name__ == "__main__":
    main()
