"""Weights of 8 and 4 bits, on a CPU."""

from __future__ import annotations

import sys

import pytest
import torch

from logitbank.configs import ConfigError
from logitbank.configs.schema import ModelConfig
from logitbank.models.huggingface import load_causal_lm, require_quantization
from tests import tiny


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ModelConfig:
    shape = {"hidden_size": 64, "intermediate_size": 128, "head_dim": 32}
    path = tiny.save_model(tmp_path_factory.mktemp("model"), tiny.word_tokenizer(97), rows=97, **shape)
    return ModelConfig(name=str(path))


@pytest.mark.parametrize(
    ("option", "layer", "error"), [("load_in_8bit", "Linear8bitLt", 0.03), ("load_in_4bit", "Linear4bit", 0.2)]
)
def test_a_quantised_model_says_nearly_what_the_whole_one_says(
    model: ModelConfig, option: str, layer: str, error: float
) -> None:
    """Rounding to 127 steps either way moves a product of 64 terms by 1% or so, to 16 steps by 10%."""
    ids = torch.randint(0, 97, (2, 11), generator=torch.Generator().manual_seed(0))
    quantised = load_causal_lm(model, **{option: True})
    assert type(quantised.model.layers[0].mlp.up_proj).__name__ == layer
    with torch.no_grad():
        expected, found = load_causal_lm(model)(input_ids=ids).logits, quantised(input_ids=ids).logits
    difference = (found.float() - expected).std() / expected.std()
    assert 0 < difference < error


def test_a_base_of_4_bits_passes_gradients_on_after_it_was_evaluated(model: ModelConfig) -> None:
    ids = torch.arange(1, 9)[None]
    base = load_causal_lm(model, load_in_4bit=True)
    embedded = base.get_input_embeddings()(ids).detach().requires_grad_()

    def gradient() -> torch.Tensor:
        base.train()
        (found,) = torch.autograd.grad(base(inputs_embeds=embedded).logits.logsumexp(-1).sum(), embedded)
        return found

    before = gradient()
    with torch.no_grad():
        base.eval()(input_ids=ids)
    assert before.abs().max() > 0
    assert torch.equal(gradient(), before)


def test_a_missing_package_is_named_with_the_extra_that_brings_it(monkeypatch: pytest.MonkeyPatch) -> None:
    require_quantization("lora.load_in_4bit")
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(ConfigError, match=r"lora\.load_in_4bit: the package bitsandbytes .*logitbank\[quantization\]"):
        require_quantization("lora.load_in_4bit")
