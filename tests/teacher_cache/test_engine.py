"""Scalars and batches of the Hugging Face teacher."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st

from logitbank.configs.schema import ModelConfig
from logitbank.models.batches import batches_by_length
from logitbank.models.weights import weights_hash
from logitbank.sequences import AnsweredSequence
from logitbank.storage import TeacherRows
from logitbank.teacher_cache.engines.base import Sequenced
from logitbank.teacher_cache.engines.huggingface import HFTeacher
from logitbank.teacher_cache.sampling import Sampling
from logitbank.teacher_cache.signal import signal
from tests import tiny


@given(st.lists(st.integers(1, 500), min_size=1, max_size=60), st.integers(1, 2000))
def test_batches_hold_every_sequence_once_within_the_budget(lengths: list[int], budget: int) -> None:
    batches = batches_by_length(lengths, budget)
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    for batch in batches:
        longest = max(lengths[i] for i in batch)
        assert len(batch) == 1 or len(batch) * longest <= budget
        assert lengths[batch[0]] == longest


def test_signal_equals_float64_arithmetic_and_survives_masked_rows() -> None:
    torch.manual_seed(1)
    logits = torch.randn(7, 300) * 4
    logits[2, 5:40] = -torch.inf  # a model that rules tokens out
    logits[3] = -40.0
    logits[3, 11] = 60.0  # nearly all mass on one token: entropy close to 0
    gold = torch.tensor([0, 1, 7, 11, 2, 3, 299])
    rows = signal(logits, gold, top_k=12, tokenizer_size=290)

    wide = logits.double()
    logsumexp = wide.logsumexp(-1)
    probabilities = (wide - logsumexp[:, None]).exp()
    np.testing.assert_allclose(rows.logsumexp, logsumexp, rtol=1e-6)
    np.testing.assert_allclose(rows.entropy, torch.special.entr(probabilities).sum(-1), atol=2e-6)
    np.testing.assert_array_equal(rows.gold_logit, logits[torch.arange(7), gold])
    real = logits[:, :290]
    np.testing.assert_array_equal(rows.gold_rank, (real > logits[torch.arange(7), gold][:, None]).sum(-1))
    np.testing.assert_array_equal(rows.logits, real.sort(dim=-1, descending=True).values[:, :12])
    assert rows.token_ids.max() < 290, "padding rows of the lm_head must not enter the top K"


def test_a_batch_gives_what_single_sequences_give(make_model: Callable[..., Path]) -> None:
    model = ModelConfig(str(make_model()))
    teacher = HFTeacher(model, dtype="float32", tokenizer_size=256, device=torch.device("cpu"))
    rng = np.random.default_rng(0)
    batch = [
        Sequenced(AnsweredSequence.answering(rng.integers(0, 256, p), rng.integers(0, 256, a)))
        for p, a in ((1, 1), (17, 4), (5, 9), (30, 1))
    ]
    together = teacher.score(batch, 10)
    start = 0
    for item in batch:
        alone = teacher.score([item], 10)
        stop = start + item.sequence.answer_length
        np.testing.assert_allclose(together.logits[start:stop], alone.logits, atol=1e-4)
        np.testing.assert_allclose(together.logsumexp[start:stop], alone.logsumexp, atol=1e-4)
        np.testing.assert_allclose(together.gold_logit[start:stop], alone.gold_logit, atol=1e-4)
        start = stop
    assert start == len(together)


def test_batches_whose_lm_head_is_read_together_give_what_each_gives_alone(
    make_model: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows come in the order of the batches, draws included, whether the answers fill one reading or several."""
    monkeypatch.setattr("logitbank.teacher_cache.answer_rows.CPU_ROWS", 3)
    model = ModelConfig(str(make_model()))
    teacher = HFTeacher(
        model, dtype="float32", tokenizer_size=256, device=torch.device("cpu"), prefix_reuse=True, excluded=(5,)
    )
    rng = np.random.default_rng(0)
    prefix = rng.integers(0, 256, 4)

    def batch(shared: int, *answers: int) -> list[Sequenced]:
        sequences = [
            AnsweredSequence.answering(
                np.concatenate([prefix[:shared], rng.integers(0, 256, 3)]), rng.integers(0, 256, a)
            )
            for a in answers
        ]
        return [Sequenced(each, shared, Sampling(5, True, rng.random(each.answer_length))) for each in sequences]

    batches = [batch(0, 2), batch(4, 1, 1, 3), batch(0, 30), batch(4, 2, 2), batch(0, 1)]
    asked = []
    together = teacher.score_batches((asked.append(each) or each for each in batches), 10)
    first = next(together)
    assert asked == batches[:3], "the first twelve answer tokens are read at once"
    for each, rows in zip(batches, [first, *together], strict=True):
        alone = teacher.score(each, 10)
        assert len(rows) == len(alone)
        for field in ("logits", "logsumexp", "entropy", "gold_logit", "sample_log_mass"):
            np.testing.assert_allclose(getattr(rows, field), getattr(alone, field), atol=1e-4, err_msg=field)
        for field in ("token_ids", "gold_rank", "sample_ids"):
            np.testing.assert_array_equal(getattr(rows, field), getattr(alone, field), err_msg=field)


@pytest.mark.parametrize("capped", [False, True])
@pytest.mark.parametrize("shared", [0, 6])
def test_long_answers_never_have_all_their_logits_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capped: bool, shared: int
) -> None:
    """The same rows and draws, a few rows of the `lm_head` at a time or a few columns; also below a soft cap."""
    size, seen = 97, []
    shape = {**tiny.SHAPE, "vocab_size": size, "initializer_range": 0.4, "query_pre_attn_scalar": 16}
    capping = {"final_logit_softcapping": 2.0} if capped else {}
    torch.manual_seed(0)
    made = transformers.Gemma3ForCausalLM(transformers.Gemma3TextConfig(**shape, **capping))
    made.save_pretrained(tmp_path)
    rng = np.random.default_rng(0)
    prefix = rng.integers(0, size, shared)
    batch = []
    for spans in ([(9, 20), (33, 4)], [(8, 30)]):
        ids = np.concatenate([prefix, rng.integers(0, size, sum(spans[-1]) - shared)])
        sequence = AnsweredSequence(ids, spans)
        batch.append(Sequenced(sequence, shared, Sampling(7, True, rng.random(sequence.answer_length))))

    def rows(hooked: bool) -> TeacherRows:
        teacher = HFTeacher(
            ModelConfig(str(tmp_path)),
            dtype="float32",
            tokenizer_size=90,
            device=torch.device("cpu"),
            prefix_reuse=True,
        )
        if hooked:  # such a head is called, not taken apart
            teacher._model.get_output_embeddings().register_forward_hook(lambda *call: seen.append(call[2].numel()))
        return teacher.score(batch, 12)

    whole = rows(hooked=True)
    assert max(seen) == 54 * size
    seen.clear()
    monkeypatch.setattr("logitbank.teacher_cache.answer_rows.CPU_ROWS", 10)
    monkeypatch.setattr("logitbank.teacher_cache.answer_rows.CPU_BLOCK_ELEMENTS", 9 * 32)
    parts = rows(hooked=True)
    assert max(seen) == 9 * size
    seen.clear()
    blocks = rows(hooked=False)
    assert not seen
    for field in ("logits", "logsumexp", "entropy", "gold_logit", "sample_log_mass"):
        np.testing.assert_allclose(getattr(parts, field), getattr(whole, field), atol=1e-5, err_msg=field)
        np.testing.assert_allclose(getattr(blocks, field), getattr(whole, field), atol=1e-5, err_msg=field)
    for found in (parts, blocks):
        np.testing.assert_array_equal(found.token_ids, whole.token_ids)
        np.testing.assert_array_equal(found.sample_ids, whole.sample_ids)
    assert (np.abs(whole.logits).max() < 2) == capped


def test_weights_hash_changes_with_any_weight(make_model: Callable[..., Path]) -> None:
    path = make_model()
    before = weights_hash(ModelConfig(str(path)))
    file = path / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(bytes(data))
    assert weights_hash(ModelConfig(str(path))) != before
    (path / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="no weight files"):
        weights_hash(ModelConfig(str(path)))
