"""Architectures: the student's answer logits are those of the model's own forward, whatever its head does."""

from __future__ import annotations

from typing import Any

import peft
import pytest
import torch
import transformers

from logitbank.student_train.module import StudentModule

pytestmark = pytest.mark.numeric

COMMON = {
    "vocab_size": 80,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "bos_token_id": 1,
}


class _Shifted(transformers.LlamaForCausalLM):
    """A head that no configuration announces."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        output = super().forward(*args, **kwargs)
        output.logits = output.logits + torch.arange(output.logits.shape[-1])
        return output


def tiny(name: str) -> Any:
    torch.manual_seed(0)
    if name == "shifted":
        return _Shifted(transformers.LlamaConfig(**COMMON))
    if name == "gpt2":
        config = transformers.GPT2Config(vocab_size=80, n_embd=32, n_layer=2, n_head=2, n_positions=64)
        return transformers.GPT2LMHeadModel(config)
    extra = {
        "gemma2": {"final_logit_softcapping": 0.5},
        "gemma3_text": {"final_logit_softcapping": 0.5},
        "cohere": {"logit_scale": 0.25},
        "granite": {"logits_scaling": 3.0},
    }
    kinds = {"qwen3": "Qwen3", "llama": "Llama", "gemma2": "Gemma2", "gemma3_text": "Gemma3Text"}
    kinds |= {"cohere": "Cohere", "granite": "Granite"}
    config = getattr(transformers, kinds[name] + "Config")(**COMMON, **extra.get(name, {}))
    return transformers.AutoModelForCausalLM.from_config(config)


@pytest.mark.parametrize("adapter", [False, True], ids=["plain", "lora"])
@pytest.mark.parametrize("name", ["qwen3", "llama", "gemma2", "gemma3_text", "cohere", "granite", "gpt2", "shifted"])
def test_answer_logits_are_the_models_own(name: str, adapter: bool) -> None:
    model = tiny(name).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)  # logits far from zero, where a soft cap or a scale shows
    if adapter:
        target = ["c_attn"] if name == "gpt2" else ["q_proj", "v_proj"]
        model = peft.get_peft_model(model, peft.LoraConfig(target_modules=target, init_lora_weights=False)).eval()
    student = StudentModule(model, chunk_tokens=2)
    assert (student.transform is None) == (name == "shifted")
    input_ids_BL = torch.randint(2, 80, (2, 7), generator=torch.Generator().manual_seed(1))
    positions = [(0, 3), (0, 4), (0, 6), (1, 2), (1, 4)]
    gold_T, top_ids_TK = torch.tensor([5, 6, 7, 8, 9]), torch.arange(10).reshape(5, 2)
    answer_index_T = torch.tensor([row * 7 + column for row, column in positions])
    got = student(input_ids_BL, answer_index_T, gold_T, top_ids_TK, with_argmax=True)
    for t, (row, column) in enumerate(positions):
        own = model(input_ids=input_ids_BL[row : row + 1, : column + 1]).logits[0, -1]
        assert got.logsumexp_T[t].item() == pytest.approx(own.logsumexp(-1).item(), rel=1e-5)
        assert got.gold_T[t].item() == pytest.approx(own[gold_T[t]].item(), rel=1e-4, abs=1e-5)
        torch.testing.assert_close(got.top_TK[t], own[top_ids_TK[t]], rtol=1e-4, atol=1e-5)
        assert got.argmax_T[t] == own.argmax()


@pytest.mark.parametrize("adapter", [False, True], ids=["plain", "lora"])
def test_accelerate_is_told_which_layers_to_shard(adapter: bool) -> None:
    model = tiny("qwen3")
    if adapter:
        model = peft.get_peft_model(model, peft.LoraConfig(target_modules=["q_proj"]))
    assert StudentModule(model, chunk_tokens=2)._no_split_modules == ["Qwen3DecoderLayer"]


def test_probing_leaves_the_model_as_it_was() -> None:
    model = tiny("gemma2").train()
    StudentModule(model, chunk_tokens=2)
    assert model.training
    assert not model.lm_head._forward_hooks


@pytest.mark.parametrize("target", ["q_proj", "lm_head"])
def test_dropout_draws_the_same_masks_when_a_chunk_is_computed_again(target: str) -> None:
    """Gradients along themselves against central differences of the loss, float64, the same masks every time."""
    lora = peft.LoraConfig(target_modules=[target], lora_dropout=0.5, init_lora_weights=False)
    model = peft.get_peft_model(tiny("llama").double(), lora).double().train()
    student = StudentModule(model, chunk_tokens=3).train()
    assert student.transform is not None
    trained = [p for p in model.parameters() if p.requires_grad]
    ids, index = torch.arange(2, 22)[None], torch.arange(5, 19)

    def loss() -> torch.Tensor:
        torch.manual_seed(1)
        got = student(ids, index, ids[0, 6:20], torch.zeros(14, 0, dtype=torch.int64))
        return (got.logsumexp_T - got.gold_T).sum()

    gradients = torch.autograd.grad(loss(), trained)
    norm = torch.cat([g.flatten() for g in gradients]).norm().item()
    ends = []
    with torch.no_grad():
        for step in (5e-3, -1e-2):
            for parameter, gradient in zip(trained, gradients, strict=True):
                parameter += step / norm * gradient
            ends.append(loss().item())
    assert (ends[0] - ends[1]) / 1e-2 == pytest.approx(norm, rel=1e-2)


def test_a_frozen_head_gets_no_gradient() -> None:
    model = peft.get_peft_model(tiny("llama"), peft.LoraConfig(target_modules=["q_proj"]))
    student = StudentModule(model, chunk_tokens=2)
    ids, index = torch.arange(2, 10)[None], torch.tensor([3, 4, 5])
    got = student(ids, index, torch.tensor([1, 2, 3]), torch.zeros(3, 0, dtype=torch.int64))
    (got.logsumexp_T - got.gold_T).sum().backward()
    assert {name.split(".")[-3] for name, p in model.named_parameters() if p.grad is not None} == {"lora_A", "lora_B"}
