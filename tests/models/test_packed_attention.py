"""Sequences in one row see themselves alone: the reference is each of them in a forward pass of its own, in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers

from logitbank.errors import ConfigError
from logitbank.models.packed_attention import keep_apart, packed_inputs
from tests.tensors import LargestTensor

pytestmark = pytest.mark.numeric

LENGTHS = (9, 1, 14, 5)
COMMON = {
    "vocab_size": 80,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "bos_token_id": 1,
    "max_position_embeddings": 64,
}
SLIDING = ["sliding_attention", "full_attention"]
APART: dict[str, dict[str, Any]] = {
    "Qwen3": {},
    "Llama": {},
    "Mistral": {"sliding_window": 4},
    "Qwen2": {"use_sliding_window": True, "sliding_window": 4, "layer_types": SLIDING},
    "Gemma2": {"sliding_window": 4, "layer_types": SLIDING, "attn_logit_softcapping": 5.0},
    "Gemma3Text": {"sliding_window": 4, "layer_types": SLIDING},
    "GPT2": {"n_embd": 32, "n_layer": 2, "n_head": 2, "resid_pdrop": 0, "embd_pdrop": 0, "attn_pdrop": 0},
}
NOT_APART: dict[str, tuple[dict[str, Any], str]] = {
    "Mamba": ({"state_size": 4}, "has layers of linear_attention"),
    "FalconH1": ({"mamba_d_ssm": 32, "mamba_n_heads": 2, "mamba_d_state": 8}, "has layers of hybrid"),
    "Lfm2": ({"layer_types": ["conv", "full_attention"]}, "has layers of conv"),
    "Qwen3Next": ({"layer_types": ["linear_attention", "full_attention"]}, "has layers of linear_attention"),
    "Bloom": ({"n_layer": 1, "n_head": 2}, "lets packed sequences attend to each other"),
    "Phi3": (
        {
            "rope_parameters": {
                "rope_type": "longrope",
                "rope_theta": 1e4,
                "short_factor": [1.0] * 8,
                "long_factor": [2.0] * 8,
                "original_max_position_embeddings": 8,
            },
            "original_max_position_embeddings": 8,
        },
        r"scales rotary positions by the length of the longest sequence \(longrope\)",
    ),
}


def make(name: str, changes: dict[str, Any], implementation: str | None = None) -> Any:
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**{**COMMON, **changes})
    options = {} if implementation is None else {"attn_implementation": implementation}
    model = transformers.AutoModelForCausalLM.from_config(config, **options).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2)  # attention far from even, so that what it is cut off from matters
    return model.train()


def loss(logits: torch.Tensor) -> torch.Tensor:
    return (logits * torch.linspace(-1, 1, logits.shape[-1], dtype=torch.float64)).sigmoid().sum()


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("name", APART)
def test_logits_and_gradients_are_those_of_each_sequence_alone(name: str, implementation: str) -> None:
    if implementation == "sdpa" and name == "Gemma2":
        pytest.skip("transformers has no sdpa for it")
    model = make(name, APART[name], implementation)
    ids = torch.randint(2, 80, (1, sum(LENGTHS)), generator=torch.Generator().manual_seed(1))
    alone = [model(input_ids=part, use_cache=False).logits for part in ids.split(LENGTHS, dim=1)]
    sum(map(loss, alone)).backward()  # type: ignore[union-attr]
    gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    keep_apart(model)
    assert model.training
    packed = model(input_ids=ids, use_cache=False, **packed_inputs(model, LENGTHS, ids.device)).logits
    # Gemma's norms compute in float32 whatever they are given
    rtol, atol = (1e-4, 1e-6) if name.startswith("Gemma") else (1e-8, 1e-10)
    torch.testing.assert_close(packed, torch.cat(alone, dim=1), rtol=rtol, atol=atol)
    loss(packed).backward()
    for parameter, gradient in gradients.items():
        torch.testing.assert_close(model.get_parameter(parameter).grad, gradient, rtol=rtol, atol=atol)
    # a row of the same tokens as one sequence is another thing
    whole = model(input_ids=ids, use_cache=False, **packed_inputs(model, [sum(LENGTHS)], ids.device)).logits
    assert not torch.allclose(whole, packed, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", NOT_APART)
def test_models_with_another_memory_are_refused(name: str) -> None:
    changes, says = NOT_APART[name]
    with pytest.raises(ConfigError, match=rf"training\.packing: {name}ForCausalLM {says}; expected a model") as caught:
        keep_apart(make(name, changes))
    assert "\n" not in str(caught.value)


class _Leaky(transformers.LlamaForCausalLM):
    """Nothing in its configuration tells that a token of it sees the one before, whichever sequence that is of."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.model.layers[1].register_forward_pre_hook(lambda _, args: (args[0] + 0.3 * args[0].roll(1, 1), *args[1:]))


def test_a_model_is_asked_and_not_its_configuration() -> None:
    with pytest.raises(ConfigError, match="_Leaky lets packed sequences attend to each other"):
        keep_apart(_Leaky(transformers.LlamaConfig(**COMMON)))


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_no_mask_of_all_tokens_by_all_is_made(implementation: str) -> None:
    model = make("Qwen3", {"max_position_embeddings": 4096}, implementation)
    keep_apart(model)
    ids = torch.ones(1, 2000, dtype=torch.int64)
    with LargestTensor() as seen:
        model.model(input_ids=ids, use_cache=False, **packed_inputs(model, [20] * 100, ids.device))
    assert seen.numel <= 2000 * 80, "hidden states are the largest, 2000 × 2000 would be a mask"


def test_flash_attention_is_told_where_sequences_begin() -> None:
    model = make("Qwen3", {})
    model.config._attn_implementation_internal = "flash_attention_2"
    inputs = packed_inputs(model, (3, 1, 2), torch.device("cpu"))
    assert inputs["position_ids"].tolist() == [[0, 1, 2, 0, 0, 1]]
    for name in ("cu_seq_lens_q", "cu_seq_lens_k"):
        assert inputs[name].tolist() == [0, 3, 4, 6]
        assert inputs[name].dtype == torch.int32
    assert (inputs["max_length_q"], inputs["max_length_k"]) == (3, 3)


def test_the_saved_configuration_is_the_models_own() -> None:
    model = make("Llama", {})
    before = model.config.to_dict()
    keep_apart(model)
    assert model.config.to_dict() == before
