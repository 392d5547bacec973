"""The README's own configuration trains on a CPU, whatever its units."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from logitbank.configs import load_config
from logitbank.student_train.records import Run
from logitbank.student_train.train import train
from logitbank.teacher_cache.build import build_store


def test_the_shipped_qwen3_configuration_on_a_cpu_without_bfloat16(
    shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The proxy has Qwen3's vocabulary, so its `lm_head` is what a naive bfloat16 product would spend minutes on."""
    caplog.set_level("INFO")
    config = load_config(
        ["qwen3-1.7b"],
        [
            *(f"model.name={shared / 'models' / 'proxy-qwen3'}", f"data.mirror={shared / 'hub'}"),
            *("teacher.dtype=float32", "tasks=[nli]", "languages=[en]", "data.max_validation_per_task=1"),
            *("data.max_train_per_task=8", "fewshot.num_demonstrations.nli=1", "training.max_steps=2"),
            *("training.global_batch_size=4", "training.num_workers=0"),
        ],
    )
    assert config.model.dtype == "bfloat16"
    build_store(config, str(tmp_path / "store"), ("fewshot",))
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict)
    started = time.process_time()
    final = train(Run(config, str(tmp_path / "store"), "fewshot", tmp_path / "run", tmp_path / "results"))
    assert time.process_time() - started < 120
    assert caplog.text.count("this CPU has no fast bfloat16, so the model is loaded in float32") == 1
    with safe_open(final / "adapter_model.safetensors", "pt") as adapter:
        assert any(adapter.get_tensor(name).abs().sum() > 0 for name in adapter.keys() if "lora_B" in name)  # noqa: SIM118
