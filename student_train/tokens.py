"""Whether the ids in a store are the student's tokens: those of its examples, and those that the teacher ranked."""

from __future__ import annotations

import shlex
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from logitbank.configs import ConfigError
from logitbank.configs.schema import ModelConfig
from logitbank.models.huggingface import lm_head_rows, load_tokenizer
from logitbank.models.vocabulary import ModelTokens, TokenDifferences
from logitbank.progress import Progress
from logitbank.storage import StoreError, TeacherStore
from logitbank.tasks.prompts import PromptEncoder, tokenizer_hash


def check_tokens(
    store: TeacherStore, model: ModelConfig, encoder: PromptEncoder, view: str | None, top_k: int | None
) -> None:
    """Refuse a student that means another token than the store by an id in it.

    Another tokenizer is not a reason: ids are compared one by one, and only those that the examples or, where the
    tokenizers differ in ids that a teacher may rank, the view's rows hold.

    Args:
        store: what the student is to learn from.
        model: the student's base model.
        encoder: of its tokenizer.
        view: teacher view, or None to learn from the answers alone.
        top_k: how many of the stored ranks are read; None for all.

    Raises:
        StoreError: names the first such token; or the tokenizer of the store's model is needed and not available.
    """
    info, rows = store.info, lm_head_rows(model)
    same = encoder.tokenizer_hash == info.tokenizer_hash
    if same and rows >= info.tokenizer_size:
        return
    of_store = encoder.tokenizer if same else _tokenizer_of(store, encoder)
    tokens = TokenDifferences(
        ModelTokens.of(info.model, of_store, info.tokenizer_size), ModelTokens.of(model.name, encoder.tokenizer, rows)
    )
    used = tokens.first_used(_examples(store))
    if used is None and view is not None and (tokens.ids < info.tokenizer_size).any():
        used = tokens.first_used(_ranked(store, view, top_k))
    if used is not None:
        raise StoreError(
            f"model.name: {tokens.describe(used)}, and the store at {store.url} contains that id; use a model with "
            "the store's tokens, or build a store for this one"
        )


def _tokenizer_of(store: TeacherStore, encoder: PromptEncoder) -> object:
    """The tokenizer that a store was built with, which its hash proves."""
    info = store.info
    differs = (
        f"model.name: its tokenizer is not the one that the store at {store.url} was built with "
        f"(hash {encoder.tokenizer_hash[:12]} instead of {info.tokenizer_hash[:12]})"
    )
    try:
        tokenizer = load_tokenizer(ModelConfig(name=info.model))
    except ConfigError as error:
        raise StoreError(f"{differs}, which cannot be opened to compare them ({error})") from error
    if tokenizer_hash(tokenizer) != info.tokenizer_hash:
        raise StoreError(
            f"{differs}, and {shlex.quote(info.model)} has a different one now, so they cannot be compared"
        )
    return tokenizer


def _examples(store: TeacherStore) -> Iterator[NDArray[np.int32]]:
    """All ids of contexts and answers."""
    for table in (store.examples, store.validation):
        for position in range(len(table)):
            yield table.sequence(position).ids


def _ranked(store: TeacherStore, view: str, top_k: int | None) -> Iterator[NDArray[np.int32]]:
    """All ids that a view ranks, and those that it drew."""
    with Progress("tokens", store.info.shards, "shards") as progress:
        for shard in range(store.info.shards):
            rows = store.read_shard(view, shard, top_k)
            yield rows.token_ids.ravel()
            yield rows.sample_ids.ravel()
            progress.advance(1)
