"""Every benchmark starts, is run by `make bench`, and has its place in docs/benchmarks.md."""

from __future__ import annotations

import contextlib
import importlib
import io
import re

import pytest

from tests.docs.pages import ROOT

BENCHMARKS = sorted(path.stem for path in (ROOT / "tests/benchmarks").glob("bench_*.py"))
RUN = re.compile(r"-m tests\.benchmarks\.(bench_\w+)")


def test_make_bench_and_the_page_name_every_benchmark() -> None:
    assert sorted(set(RUN.findall((ROOT / "Makefile").read_text()))) == BENCHMARKS
    assert sorted(set(RUN.findall((ROOT / "docs/benchmarks.md").read_text()))) == BENCHMARKS


@pytest.mark.parametrize("name", BENCHMARKS)
def test_a_benchmark_starts_and_takes_the_options_shown(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module = importlib.import_module(f"tests.benchmarks.{name}")
    monkeypatch.setattr("sys.argv", [name, "--help"])
    output = io.StringIO()
    with contextlib.redirect_stdout(output), pytest.raises(SystemExit) as ended:
        module.main()
    assert ended.value.code == 0
    text = "\n".join(path.read_text() for path in (ROOT / "Makefile", ROOT / "docs/benchmarks.md"))
    for arguments in re.findall(rf"-m tests\.benchmarks\.{name}\b(.*)$", text, re.MULTILINE):
        for option in re.findall(r"--[a-z-]+", arguments):
            assert option in output.getvalue(), option
