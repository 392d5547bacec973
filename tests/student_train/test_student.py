"""What the student is before its first step."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState

from logitbank.configs import Config
from logitbank.models.precision import has_fast_bfloat16
from logitbank.student_train.order import BatchPlan
from logitbank.student_train.setup import make_accelerator
from logitbank.student_train.student import build_student

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _no_engine_stays() -> Iterator[None]:
    """Accelerate keeps one precision for a process, unless told to forget it."""
    AcceleratorState._reset_state()
    yield
    AcceleratorState._reset_state()
    GradientState._reset_state()


@pytest.mark.parametrize(
    ("capabilities", "fast"),
    [
        ({"architecture": "x86_64", "avx2": True, "avx512_f": True, "avx512_bf16": False}, False),
        ({"architecture": "x86_64", "avx512_bf16": True}, True),
        ({"architecture": "x86_64", "avx512_bf16": False, "amx_bf16": True}, True),
        ({"architecture": "aarch64", "neon": True, "arm_bf16": True}, True),
    ],
)
def test_a_base_in_bfloat16_is_float32_where_that_is_slow_and_the_user_is_told(
    configure: Callable[..., Config],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capabilities: dict[str, object],
    fast: bool,
) -> None:
    caplog.set_level("INFO")
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    monkeypatch.setattr("logitbank.models.precision._said", set())
    assert has_fast_bfloat16(CPU) == fast
    config = configure("model.dtype=bfloat16", "training.use_lora=true", "training.precision=bf16")
    model = build_student(config, CPU)
    assert model.get_base_model().lm_head.weight.dtype == (torch.bfloat16 if fast else torch.float32)
    accelerator = make_accelerator(config.training, BatchPlan(8, 8, 1, 0))
    assert accelerator.mixed_precision == ("bf16" if fast else "no")
    told = ["model.dtype: this CPU has no fast bfloat16", "training.precision: this CPU has no fast bfloat16"]
    assert all((line in caplog.text) != fast for line in told)
    caplog.clear()
    assert build_student(configure("training.use_lora=true"), CPU) is not None
    assert "bfloat16" not in caplog.text  # nobody asked for it


def test_an_accelerator_multiplies_bfloat16_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict)
    assert has_fast_bfloat16(torch.device("cuda"))
    assert not has_fast_bfloat16(CPU)
