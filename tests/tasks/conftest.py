"""Fixtures for the tests of tasks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast


def byte_tokenizer(
    template: str | None = None, *, bos: bool = False, eos: str | None = "</s>", control: tuple[str, ...] = ()
) -> Any:
    """A tokenizer that needs no download: one token for each byte, plus control tokens.

    Args:
        template: chat template.
        bos: whether `<s>` is put before every text.
        eos: the end-of-sequence token.
        control: further special tokens.
    """
    vocabulary = {letter: index for index, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    special = ["<s>", *([eos] if eos else []), "<|im_start|>", "<|im_end|>", *control]
    backend.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in special])
    if bos:
        backend.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", backend.token_to_id("<s>"))]
        )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>" if bos else None, eos_token=eos)
    tokenizer.chat_template = template
    return tokenizer


@pytest.fixture(scope="session")
def make_tokenizer() -> Callable[..., Any]:
    """Builds byte-level tokenizers; arguments as of `byte_tokenizer`."""
    return byte_tokenizer
