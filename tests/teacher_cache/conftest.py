"""Tiny random models that wear real tokenizers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from tests import tiny

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
        path = tmp_path_factory.mktemp("worn")
        return tiny.save_model(
            path,
            tokenizer,
            rows=len(tokenizer) + padding_rows,
            architecture="llama",
            hidden_size=16,
            intermediate_size=24,
            head_dim=8,
            max_position_embeddings=4096,
            initializer_range=0.5,
        )

    return make
