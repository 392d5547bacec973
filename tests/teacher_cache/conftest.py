"""Tiny random models that wear real tokenizers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import AutoTokenizer

PADDING_ROWS = 8


@pytest.fixture(scope="session")
def wear(tmp_path_factory: pytest.TempPathFactory, shared: Path) -> Callable[..., Path]:
    """`wear(tokenizer, template, padding_rows=8)` saves a random model with that real tokenizer and chat template.

    The template is the tokenizer's own ("own"), the file of that name, or none at all (None).
    """

    def make(tokenizer_name: str, template: str | None, padding_rows: int = PADDING_ROWS) -> Path:
        tokenizer: Any = AutoTokenizer.from_pretrained(shared / "tokenizers" / tokenizer_name)
        if template is None:
            tokenizer.chat_template = None
        elif template != "own":
            tokenizer.chat_template = (shared / "tokenizers/templates" / f"{template}.jinja").read_text()
        torch.manual_seed(0)
        config = transformers.LlamaConfig(
            vocab_size=len(tokenizer) + padding_rows,
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            max_position_embeddings=4096,
            tie_word_embeddings=True,
            initializer_range=0.5,
        )
        path = tmp_path_factory.mktemp("worn")
        transformers.LlamaForCausalLM(config).save_pretrained(path)
        tokenizer.save_pretrained(path)
        return path

    return make
