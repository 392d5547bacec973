"""`make bench-gpu`, on two layers of a CPU: every part runs, and says so where it cannot."""

from __future__ import annotations

import builtins
import sys
from typing import Any

import pytest
import torch

from tests.benchmarks import bench_gpu


def _run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["bench_gpu", *arguments])
    bench_gpu.main()


@pytest.mark.filterwarnings("ignore")
def test_all_parts_run_on_a_cpu_and_are_printed_as_a_table(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    parts = ("teacher", "agreement", "student", "quantised")
    _run(monkeypatch, "--device", "cpu", "--shape", "tiny", "--rounds", "1", "--parts", *parts)
    rows = [line.split(" | ") for line in capsys.readouterr().out.splitlines() if line.startswith("| ")][1:]
    assert [row[0].removeprefix("| ") for row in rows] == ["teacher"] * 5 + ["agreement"] * 4 + ["student"] * 4 + [
        "quantised"
    ] * 3
    values = {row[1]: row[2].removesuffix(" |") for row in rows}
    assert float(values["build to bare forward passes, long answers"]) > 0.5
    logits, sums = values["engine and model in float32, largest difference"].removeprefix("logits ").split(", sums ")
    assert float(logits) < 1e-3
    assert float(sums) < 1e-3


def test_a_part_whose_package_is_missing_is_left_out(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = builtins.__import__

    def without_vllm(name: str, *arguments: Any) -> Any:
        if name == "vllm":
            raise ModuleNotFoundError("No module named 'vllm'", name="vllm")
        return real(name, *arguments)

    monkeypatch.setattr(builtins, "__import__", without_vllm)
    monkeypatch.delitem(sys.modules, "tests.benchmarks.gpu.capture", raising=False)
    _run(monkeypatch, "--device", "cpu", "--shape", "tiny", "--parts", "capture")
    assert "| capture | left out | needs the package vllm |" in capsys.readouterr().out


def test_a_part_that_fails_is_named_and_the_exit_status_tells(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from tests.benchmarks.gpu import agreement

    def broken(setting: Any) -> Any:
        raise RuntimeError("no kernel\nfor this")

    monkeypatch.setattr(agreement, "run", broken)
    with pytest.raises(SystemExit) as stop:
        _run(monkeypatch, "--device", "cpu", "--shape", "tiny", "--parts", "agreement")
    assert stop.value.code == 1
    assert "| agreement | failed | RuntimeError: no kernel |" in capsys.readouterr().out


def test_without_a_gpu_it_says_so_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    with pytest.raises(SystemExit) as stop:
        _run(monkeypatch)
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("bench_gpu: --device cuda: expected a GPU, found none")
