"""What the vLLM engines refuse, wherever vLLM itself is not needed to say so."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from transformers import AutoTokenizer

from logitbank.configs import ConfigError
from logitbank.configs.schema import ModelConfig
from logitbank.evaluation import evaluate_command
from logitbank.teacher_cache import build_command
from logitbank.teacher_cache.engines.huggingface import HFTeacher

without_vllm = pytest.mark.skipif(importlib.util.find_spec("vllm") is not None, reason="vllm is installed here")


def _error(capsys: pytest.CaptureFixture[str], run: Callable[[], None]) -> str:
    with pytest.raises(SystemExit) as stop:
        run()
    assert stop.value.code == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    return line


@without_vllm
def test_a_missing_package_is_named_before_any_work(
    make_model: Callable[..., Path], mirror: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    line = _error(
        capsys,
        lambda: build_command.main(["--store", str(tmp_path / "s"), "model.name=/nowhere", "teacher.engine=vllm"]),
    )
    assert "teacher.engine: the package vllm is not installed" in line
    assert "pip install vllm" in line
    assert not (tmp_path / "s").exists()
    asked = ["--condition", "base", "--results", str(tmp_path / "r"), f"model.name={make_model()}"]
    data = [f"data.mirror={mirror}", "tasks=[nli]", "languages=[en]", "evaluation.max_samples=2"]
    line = _error(capsys, lambda: evaluate_command.main([*asked, *data, "evaluation.engine=vllm"]))
    assert "evaluation.engine: the package vllm is not installed" in line


@pytest.mark.parametrize(
    ("override", "advice"),
    [
        ("teacher.device_map=auto", "vllm.tensor_parallel"),
        ("teacher.load_in_8bit=true", "quantised checkpoint"),
        ("teacher.load_in_4bit=true", "quantised checkpoint"),
        ("vllm.gpu_memory_utilization=1.5", "at most 1"),
        ("vllm.tensor_parallel=0", "at least 1"),
    ],
)
def test_keys_that_vllm_has_no_use_for_are_refused(
    override: str, advice: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    line = _error(
        capsys,
        lambda: build_command.main(
            ["--store", str(tmp_path / "s"), "--dry-run", "model.name=/nowhere", "teacher.engine=vllm", override]
        ),
    )
    assert override.split("=")[0] in line
    assert advice in line


def test_more_ranks_than_tokens_are_refused(
    make_model: Callable[..., Path], mirror: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = make_model()
    arguments = ["--store", str(tmp_path / "s"), "--dry-run", f"model.name={model}"]
    arguments += [f"data.mirror={mirror}", "tasks=[nli]", "languages=[en]", "data.max_train_per_task=2"]
    tokens = len(AutoTokenizer.from_pretrained(model))
    too_many = f"teacher.top_k={tokens + 1}"
    line = _error(capsys, lambda: build_command.main([*arguments, "teacher.engine=vllm", too_many]))
    assert f"teacher.top_k: expected at most {tokens}, the size of the vocabulary, got {tokens + 1}" in line
    build_command.main([*arguments, "teacher.engine=vllm", f"teacher.top_k={tokens}"])
    assert "answer tokens" in capsys.readouterr().out


def test_transformers_without_masks_of_positions_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transformers, "__version__", "5.19.0")
    with pytest.raises(ConfigError, match=r"teacher.engine: hf needs transformers 5.21 or newer, got 5.19.0"):
        HFTeacher(ModelConfig("unused"), dtype=None, tokenizer_size=1, device=torch.device("cpu"))
