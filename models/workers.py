"""Which share of the work is this process's: said by `--worker`, or by the launcher's environment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from logitbank.configs.schema import ConfigError


@dataclass(frozen=True)
class Worker:
    """Worker `index` (from 0) of `count`; `source` says where that was read."""

    index: int
    count: int
    source: str

    def __str__(self) -> str:
        return f"worker {self.index} of {self.count} ({self.source})"


def find_worker(argument: str | None, environment: Mapping[str, str], *, arrays: bool = True) -> Worker | None:
    """The worker that `--worker I/N`, a Slurm array or torchrun (also accelerate launch) makes this process.

    A Slurm array whose tasks run torchrun has as many workers as processes in all its tasks.

    Args:
        argument: of `--worker`, which comes first; None if it was not given.
        environment: of the process.
        arrays: whether the tasks of a Slurm array share the work; otherwise each does something else.

    Returns:
        None for a process on its own.

    Raises:
        ConfigError: `--worker` is not I/N, or the array's indices leave gaps.
    """
    if argument is not None:
        index, _, count = argument.partition("/")
        if not (index.isdigit() and count.isdigit() and int(index) < int(count)):
            raise ConfigError(f"--worker: expected I/N with I from 0 to N-1, got {argument!r}")
        return Worker(int(index), int(count), "--worker")
    rank, ranks = int(environment.get("RANK", 0)), int(environment.get("WORLD_SIZE", 1))
    task, tasks = _array_task(environment) if arrays else (0, 1)
    if ranks * tasks == 1:
        return None
    sources = [*(["Slurm array"] if tasks > 1 else []), *(["RANK and WORLD_SIZE"] if ranks > 1 else [])]
    return Worker(task * ranks + rank, tasks * ranks, " and ".join(sources))


def _array_task(environment: Mapping[str, str]) -> tuple[int, int]:
    """Index from 0 and number of tasks of the Slurm job array; (0, 1) outside of one."""
    if "SLURM_ARRAY_TASK_ID" not in environment:
        return 0, 1
    tasks = int(environment.get("SLURM_ARRAY_TASK_COUNT", 1))
    first, step = int(environment.get("SLURM_ARRAY_TASK_MIN", 0)), int(environment.get("SLURM_ARRAY_TASK_STEP", 1))
    index, rest = divmod(int(environment["SLURM_ARRAY_TASK_ID"]) - first, step)
    if rest or not 0 <= index < tasks:
        raise ConfigError(
            f"--worker: expected a Slurm array without gaps, such as 0-{tasks - 1}, got task "
            f"{environment['SLURM_ARRAY_TASK_ID']} of {tasks}; give --worker I/N yourself"
        )
    return index, tasks
