"""Memory of long sequences: what would be (tokens × tokens) or (tokens × vocabulary) is never there as a whole."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import transformers

from logitbank.sequences import AnsweredSequence
from logitbank.student_train.batch import collate
from logitbank.student_train.losses.step_loss import step_loss
from logitbank.student_train.module import StudentModule, run_student
from tests import tiny
from tests.tensors import LargestTensor

TOKENS = 2048
PROXY_VOCABULARY = 151_936
CHUNK = 64
HIDDEN = tiny.SHAPE["hidden_size"]


def conversation(tokens: int, vocabulary: int) -> AnsweredSequence:
    """Ten turns, a quarter of the tokens in answers."""
    ids = np.random.default_rng(0).integers(1, vocabulary, tokens)
    stops = [tokens * turn // 10 for turn in range(1, 11)]
    return AnsweredSequence(ids, [(stop - tokens // 40, tokens // 40) for stop in stops])


def student(vocabulary: int, *, packing: bool) -> StudentModule:
    shape = {**tiny.SHAPE, "num_hidden_layers": 1, "max_position_embeddings": TOKENS}
    model = transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**shape, vocab_size=vocabulary))
    return StudentModule(model.train(), chunk_tokens=CHUNK, packing=packing)


def take_step(module: StudentModule, sequences: list[AnsweredSequence], *, packed: bool) -> None:
    batch = collate(sequences, [0] * len(sequences), None, step_tokens=1, packed=packed)
    zeros_T = torch.zeros(len(batch.gold_T))
    step_loss(run_student(module, batch), None, kd_term=None, lambda_T=zeros_T, step_tokens=1).total.backward()


def test_2048_tokens_of_the_proxys_vocabulary_hold_one_chunk_of_logits() -> None:
    """In float32, those of all tokens would be 1.2 GB, of all answers 310 MB; of a chunk of 64 they are 39 MB."""
    module = student(PROXY_VOCABULARY, packing=True)
    kept: list[torch.Size] = []
    batch = collate([conversation(TOKENS, PROXY_VOCABULARY)], [0], None, step_tokens=1, packed=True)
    with (
        LargestTensor(PROXY_VOCABULARY) as largest,
        torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.shape) or t, lambda t: t),
    ):
        logits = run_student(module, batch)
        rows_kept = sum(shape[0] for shape in kept if shape[1:] == (PROXY_VOCABULARY,) and shape[0] != HIDDEN)
        (logits.logsumexp_T - logits.gold_T).sum().backward()
    assert len(batch.gold_T) > 5 * CHUNK
    assert largest.rows == CHUNK, "logits of a chunk; the head's weight, transposed, has fewer rows"
    assert 0 < rows_kept <= CHUNK


@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
def test_no_mask_of_all_tokens_by_all_is_held(packed: bool) -> None:
    module = student(97, packing=packed)
    sequences = [conversation(TOKENS, 97), conversation(TOKENS // 4, 97)]
    kept: list[Any] = []
    with (
        LargestTensor() as largest,
        torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t),
    ):
        take_step(module, sequences, packed=packed)
    width = max(2 * 48, 3 * 32)  # the widest layers hold a few tensors of (tokens, 48) and (tokens, heads, 16)
    assert largest.numel <= 2 * TOKENS * width
    assert largest.numel < TOKENS * TOKENS / 4
    assert max(kept) < TOKENS * TOKENS / 4
