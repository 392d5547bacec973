"""What a model is opened in: float32 where bfloat16 would crawl, said once, and recorded as it is."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from logitbank.configs.schema import ModelConfig
from logitbank.models.huggingface import load_causal_lm
from logitbank.models.precision import opened_dtype
from logitbank.teacher_cache.engines.huggingface import HFTeacher
from tests import tiny

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save_model(tmp_path_factory.mktemp("model"), tiny.byte_tokenizer(), rows=264)


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU without bfloat16 units, in a process that has said nothing yet."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True, "avx512_bf16": False})
    monkeypatch.setattr("logitbank.models.precision._said", set())


def test_evaluation_and_teacher_open_float32_and_say_so_once(
    slow: None, model: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    asked = ModelConfig(str(model), dtype="bfloat16")
    for _ in range(2):
        assert load_causal_lm(asked, device=CPU).dtype == torch.float32
    teacher = HFTeacher(ModelConfig(str(model)), dtype="bfloat16", tokenizer_size=256, device=CPU)
    assert teacher.identity()["dtype"] == "float32"
    lines = [record.getMessage() for record in caplog.records if "bfloat16" in record.getMessage()]
    assert lines == [
        "model.dtype: this CPU has no fast bfloat16, so the model is loaded in float32",
        "teacher.dtype: this CPU has no fast bfloat16, so the model is loaded in float32",
    ]


def test_bfloat16_stays_where_it_is_fast(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": True})
    assert load_causal_lm(ModelConfig(str(model), dtype="bfloat16"), device=CPU).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("name", "device", "expected"),
    [
        ("auto", "cpu", "float32"),
        ("auto", "cuda", "auto"),
        ("bfloat16", "cuda", "bfloat16"),
        ("bfloat16", "cpu", "float32"),
        ("float16", "cpu", "float16"),
        ("float32", "cpu", "float32"),
    ],
)
def test_what_is_asked_and_what_is_opened(slow: None, name: str, device: str, expected: str) -> None:
    assert opened_dtype("model.dtype", name, torch.device(device)) == expected
