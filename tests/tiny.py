"""Tokenizers and models small enough for any test: made here, never downloaded."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

CHAT_TEMPLATE = (
    "{% for m in messages %}<start>{{ m.role }}\n{{ m.content }}<end>{% endfor %}"
    "{% if add_generation_prompt %}<start>assistant\n{% endif %}"
)
ARCHITECTURES = {
    "qwen3": (transformers.Qwen3Config, transformers.Qwen3ForCausalLM),
    "llama": (transformers.LlamaConfig, transformers.LlamaForCausalLM),
}
SHAPE = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "max_position_embeddings": 1024,
    "tie_word_embeddings": True,
}
FOUR_STEPS = (  # full fine-tuning in float32
    "training.precision=fp32",
    "training.use_lora=false",
    "training.max_steps=4",
    "training.warmup_steps=1",
    "training.global_batch_size=8",
    "training.micro_batch_size=4",
    "training.learning_rate=0.003",
    "training.logging_steps=1",
)


def byte_tokenizer(
    template: str | None = None,
    *,
    bos: bool = False,
    eos: str | None = "</s>",
    turn: Sequence[str] = ("<|im_start|>", "<|im_end|>"),
    control: Sequence[str] = (),
) -> Any:
    """One token for each byte, plus control tokens.

    Args:
        template: chat template.
        bos: whether `<s>` is put before every text.
        eos: the end-of-sequence token.
        turn: special tokens that begin and end a turn.
        control: further special tokens.
    """
    vocabulary = {letter: index for index, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    special = ["<s>", *([eos] if eos and eos not in turn else []), *turn, *control]
    backend.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in special])
    if bos:
        backend.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", backend.token_to_id("<s>"))]
        )
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>" if bos else None, eos_token=eos
    )
    tokenizer.chat_template = template
    return tokenizer


def chat_tokenizer() -> Any:
    """The byte tokenizer with `CHAT_TEMPLATE`, whose turns end in `<end>`, and a padding token."""
    tokenizer = byte_tokenizer(CHAT_TEMPLATE, eos="<end>", turn=("<start>", "<end>"), control=("<pad>",))
    tokenizer.pad_token = "<pad>"
    return tokenizer


def word_tokenizer(words: int) -> Any:
    """`words` tokens in all: `<pad>`, `<end>`, `w0`, `w1` …, between white space."""
    names = ["<pad>", "<end>", *(f"w{number}" for number in range(words - 2))]
    backend = Tokenizer(models.WordLevel({name: index for index, name in enumerate(names)}, unk_token="w0"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", eos_token="<end>")


def save_model(
    path: Path, tokenizer: Any, *, rows: int, architecture: str = "qwen3", seed: int = 0, **changes: Any
) -> Path:
    """Save a random causal language model with its tokenizer.

    Args:
        path: directory.
        tokenizer: saved beside the model.
        rows: of the `lm_head`; at least the tokenizer's length.
        architecture: key of `ARCHITECTURES`.
        seed: of the weights.
        changes: of the model's configuration, on top of `SHAPE`.
    """
    config_type, model_type = ARCHITECTURES[architecture]
    torch.manual_seed(seed)
    model = model_type(config_type(**{**SHAPE, "vocab_size": rows, **changes}))
    # A checkpoint's own sampling defaults must not reach greedy decoding.
    model.generation_config = transformers.GenerationConfig(do_sample=True, temperature=5.0, repetition_penalty=1.8)
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path
