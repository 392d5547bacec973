"""`query-results --memory` under a limit that the system enforces."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path

import pytest

from logitbank.errors import ConfigError
from logitbank.storage.results import parse_memory
from tests.benchmarks.bench_results import generate


@pytest.mark.parametrize(
    ("text", "size"),
    [("512MB", 512 * 10**6), ("4GB", 4 * 10**9), ("1.5 gib", 3 * 2**29), ("1TiB", 2**40), (" 2GB ", 2 * 10**9)],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_memory(text) == size


@pytest.mark.parametrize("text", ["10XB", "GB", "", "4", "-1GB", "1e3MB", "511MB", "0GB"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"^--memory: expected"):
        parse_memory(text)


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_DATA counts mapped memory on Linux alone")
def test_tables_are_the_same_within_a_limit(tmp_path: Path) -> None:
    generate(tmp_path, runs=12, rows=60_000)
    command = [sys.executable, "-m", "logitbank", "query-results", "--results", str(tmp_path)]

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_DATA, (512 * 10**6, 512 * 10**6))

    free = subprocess.run([*command, "tables"], capture_output=True, text=True, check=True)
    bound = subprocess.run(
        [*command, "--memory", "512MB", "tables"], capture_output=True, text=True, preexec_fn=limited
    )
    assert (bound.stderr, bound.returncode) == ("", 0)
    assert bound.stdout == free.stdout
    assert "60,000 predictions of 12 evaluations" in bound.stdout
