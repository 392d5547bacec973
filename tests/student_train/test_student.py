"""What the student is before its first step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import transformers
from accelerate.state import AcceleratorState, GradientState

from logitbank.configs import Config, ConfigError
from logitbank.models.precision import has_fast_bfloat16
from logitbank.student_train.setup import make_accelerator
from logitbank.student_train.split import BatchPlan
from logitbank.student_train.student import build_student
from tests import tiny

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


LINEAR = {
    "qwen3": {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"},
    "phi3": {"qkv_proj", "o_proj", "gate_up_proj", "down_proj"},
    "gpt2": {"c_attn", "c_proj", "c_fc"},
}


@pytest.fixture(scope="module")
def other_models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Models whose layers have other names, GPT-2's not even linear layers."""
    phi = transformers.Phi3Config(vocab_size=97, pad_token_id=0, **{**tiny.SHAPE, "num_hidden_layers": 1})
    gpt = transformers.GPT2Config(vocab_size=97, n_embd=32, n_layer=1, n_head=2, n_positions=64)
    paths = {}
    for name, config in {"phi3": phi, "gpt2": gpt}.items():
        paths[name] = tmp_path_factory.mktemp(name)
        transformers.AutoModelForCausalLM.from_config(config).save_pretrained(paths[name])
    return paths


@pytest.mark.parametrize("name", LINEAR)
def test_all_linear_adapts_every_linear_layer_but_the_head(
    name: str, configure: Callable[..., Config], other_models: dict[str, Path]
) -> None:
    where = [f"model.name={other_models[name]}"] if name in other_models else []
    model = build_student(configure("training.use_lora=true", "lora.target_modules=all-linear", *where), CPU)
    adapted = {n.split(".lora_A")[0].rsplit(".", 1)[-1] for n, _ in model.named_parameters() if ".lora_A." in n}
    assert adapted == LINEAR[name]


@pytest.mark.parametrize(
    ("name", "targets", "says"),
    [
        (
            "phi3",  # two of them are there
            "[q_proj,k_proj,o_proj,down_proj]",
            "lora.target_modules: Phi3ForCausalLM has no q_proj, k_proj; expected names among o_proj, qkv_proj, "
            "gate_up_proj, down_proj, or all-linear",
        ),
        (
            "gpt2",
            "[q_proj]",
            "lora.target_modules: GPT2LMHeadModel has no q_proj; expected names among c_attn, c_proj, c_fc, or "
            "all-linear",
        ),
        ("gpt2", "[ln_1]", "lora.target_modules: ln_1 do not fit GPT2LMHeadModel: .*; name some of c_attn"),
    ],
)
def test_modules_that_a_model_lacks_are_refused_and_its_own_named(
    name: str, targets: str, says: str, configure: Callable[..., Config], other_models: dict[str, Path]
) -> None:
    config = configure("training.use_lora=true", f"lora.target_modules={targets}", f"model.name={other_models[name]}")
    with pytest.raises(ConfigError, match=says) as caught:
        build_student(config, CPU)
    assert "\n" not in str(caught.value)


def test_an_accelerator_multiplies_bfloat16_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict)
    assert has_fast_bfloat16(torch.device("cuda"))
    assert not has_fast_bfloat16(CPU)
