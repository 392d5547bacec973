"""How much memory reading result files may use."""

from __future__ import annotations

import os
import re
import tempfile
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb

from logitbank.errors import ConfigError

UNITS = {"MB": 10**6, "GB": 10**9, "TB": 10**12, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}
LEAST = 512 * 10**6  # bytes
MOST_THREADS = 8  # that make copies at once


@dataclass(frozen=True)
class Memory:
    """A limit for a whole process, or for a part of its work.

    Attributes:
        limit: in bytes; None leaves it to DuckDB, which takes up to 80% of the machine's.
        threads: that work at once.
    """

    limit: int | None = None
    threads: int = 1

    @classmethod
    def of(cls, limit: int | None) -> Memory:
        """For a process: half is DuckDB's, whose threads take some each; Python and what it holds take the rest."""
        cores = min(_cores(), MOST_THREADS)
        return cls(limit, cores if limit is None else max(1, min(cores, limit // LEAST)))

    @property
    def rows(self) -> int:
        """Bytes of result rows that Python may hold at once."""
        return 2**28 if self.limit is None else min(2**28, self.limit // 8)

    @property
    def piece(self) -> int:
        """Bytes of result files, compressed, to make one copy of: a hundred times as many once they are read."""
        return 2**26 if self.limit is None else min(2**26, self.limit // self.threads // 400)

    def share(self, parts: int) -> Memory:
        """For each of so many parts that work at once."""
        return Memory(None if self.limit is None else self.limit // parts, 1)

    def connect(self, *, threads: int | None = None, **config: Any) -> duckdb.DuckDBPyConnection:
        """An in-memory database within the limit; what does not fit goes into the system's temporary directory."""
        config["async_threads"] = 0  # they wait for remote files
        config["temp_directory"] = str(Path(tempfile.gettempdir(), f"logitbank-{uuid.uuid4().hex[:12]}"))
        if self.limit is not None:
            config["memory_limit"] = f"{self.limit // 2}B"
            config["threads"] = self.threads
        if threads is not None:
            config["threads"] = threads
        return duckdb.connect(":memory:", config=config)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def parse_memory(text: str) -> int:
    """Bytes of a size such as `4GB` or `512MiB`.

    Raises:
        ConfigError: no size, or too small a one.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([A-Z]+)", text.strip().upper())
    if found is None or found[2] not in UNITS:
        raise ConfigError(f"--memory: expected a size such as 512MB or 4GB, got {text!r}")
    size = int(float(found[1]) * UNITS[found[2]])
    if size < LEAST:
        raise ConfigError(f"--memory: expected at least {LEAST // 10**6}MB, got {text}")
    return size
