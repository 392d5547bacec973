"""Teacher-forced scores are what a loop over single tokens gives, in batches and chunks of any size."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
import transformers

from logitbank.configs.schema import DistillationConfig
from logitbank.evaluation.engines import likelihood
from logitbank.evaluation.engines.base import Likelihood, Teacher
from logitbank.evaluation.engines.huggingface import HfEngine
from logitbank.sequences import AnsweredSequence
from logitbank.storage import TeacherRows, concatenate
from logitbank.student_train.losses.base import StudentLogits, TeacherLogits
from logitbank.student_train.losses.forward_kl import ForwardKl
from tests import tiny

pytestmark = pytest.mark.numeric
ROWS = 264  # of the tiny model's `lm_head`, more than its tokenizer has


def _sequences(count: int = 7, seed: int = 3) -> list[AnsweredSequence]:
    """Conversations of random bytes: one to four answers of one to nine tokens."""
    rng = random.Random(seed)
    found = []
    for _ in range(count):
        ids, spans = [rng.randrange(256) for _ in range(rng.randrange(1, 12))], []
        for _ in range(rng.randrange(1, 5)):
            ids += [rng.randrange(256) for _ in range(rng.randrange(1, 6))]
            spans.append((len(ids), rng.randrange(1, 10)))
            ids += [rng.randrange(256) for _ in range(spans[-1][1])]
        found.append(AnsweredSequence(ids, spans))
    return found


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Logits some nats apart, so that first choices and divergences are no coin tosses."""
    path = tiny.save_model(
        tmp_path_factory.mktemp("model") / "m", tiny.chat_tokenizer(), rows=ROWS, initializer_range=0.3
    )
    return transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()


def _engine(model: Any, batch_tokens: int = 120) -> HfEngine:
    return HfEngine(model, tiny.chat_tokenizer(), batch_tokens=batch_tokens)


def _logits(model: Any, sequence: AnsweredSequence) -> torch.Tensor:
    """(T, V) float64: for each answer token the logits of a forward pass over what stands before it, alone."""
    own = model.double()
    try:
        with torch.inference_mode():
            rows = [own(torch.tensor([sequence.ids[:at].tolist()])).logits[0, -1] for at in sequence.answer_positions]
    finally:
        model.float()
    return torch.stack(rows)


def _teacher_rows(sequence: AnsweredSequence, top_k: int, seed: int) -> tuple[TeacherRows, torch.Tensor]:
    """A teacher's rows of random logits, and its whole distribution, (T, V) float64 log-probabilities."""
    generator = torch.Generator().manual_seed(seed)
    logits_TV = 3 * torch.randn(sequence.answer_length, ROWS, generator=generator).double()
    top = logits_TV.topk(top_k)
    log_p_TV = logits_TV.log_softmax(-1)
    gold_T = torch.from_numpy(sequence.answer_ids.astype(np.int64))
    outside = log_p_TV.scatter(1, top.indices, -torch.inf).logsumexp(-1)
    return TeacherRows(
        top.indices.int().numpy(),
        top.values.float().numpy(),
        logits_TV.logsumexp(-1).float().numpy(),
        -(log_p_TV.exp() * log_p_TV).sum(-1).float().numpy(),
        logits_TV.gather(1, gold_T[:, None])[:, 0].float().numpy(),
        np.zeros(len(gold_T), np.int32),
        outside.clamp(min=-100).float().numpy(),
    ), log_p_TV


def _teacher(rows: Sequence[TeacherRows], untaught: Sequence[int] = ()) -> Teacher:
    return Teacher(lambda places: concatenate([rows[place] for place in places]), ROWS, untaught)


def _silent(_: int) -> None:
    pass


def test_likelihoods_equal_one_token_at_a_time(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(likelihood.LOGITS, "cpu", 5 * ROWS)  # several chunks a batch
    sequences, ready = _sequences(), []
    found = _engine(model).score(sequences, progress=ready.append)
    assert sum(ready) == len(sequences)
    assert len(ready) > 2, "the budget was to make several batches"
    for sequence, got in zip(sequences, found, strict=True):
        logits_TV, gold_T = _logits(model, sequence), torch.from_numpy(sequence.answer_ids.astype(np.int64))
        expected = -logits_TV.log_softmax(-1).gather(1, gold_T[:, None]).sum()
        assert got.tokens == sequence.answer_length
        # logits of size 10 in float32, through two layers: each token is off by some 1e-5 at most
        assert got.negative_log_likelihood == pytest.approx(float(expected), abs=2e-5 * got.tokens, rel=1e-5)
        assert got.correct == int((logits_TV.argmax(-1) == gold_T).sum())
        assert (got.compared, got.kl, got.agreement) == (0, 0.0, 0)


@pytest.mark.parametrize("top_k", [1, 16, ROWS])
def test_divergence_and_agreement_are_those_of_the_definition(model: Any, top_k: int) -> None:
    """K tokens and one for all others; with K = V the divergence itself, otherwise no more than that."""
    sequences = _sequences()
    taught = [_teacher_rows(sequence, top_k, seed) for seed, sequence in enumerate(sequences)]
    found = _engine(model).score(sequences, _teacher([rows for rows, _ in taught]), progress=_silent)
    for sequence, (rows, log_p_TV), got in zip(sequences, taught, found, strict=True):
        log_q_TV = _logits(model, sequence).log_softmax(-1)
        ids = torch.from_numpy(rows.token_ids.astype(np.int64))
        p, q = (values.gather(1, ids) for values in (log_p_TV, log_q_TV))
        if top_k < ROWS:
            p, q = (
                torch.cat([own, dense.scatter(1, ids, -torch.inf).logsumexp(-1, keepdim=True)], dim=1)
                for own, dense in ((p, log_p_TV), (q, log_q_TV))
            )
        expected = float((p.exp() * (p - q)).sum())
        dense = float((log_p_TV.exp() * (log_p_TV - log_q_TV)).sum())
        assert got.kl == pytest.approx(expected, abs=2e-5 * got.tokens, rel=1e-5)
        assert got.kl <= dense + 2e-5 * got.tokens
        assert got.compared == got.tokens == sequence.answer_length
        assert got.agreement == int((log_q_TV.argmax(-1) == log_p_TV.argmax(-1)).sum())


def test_the_divergence_is_what_training_minimises(model: Any) -> None:
    (sequence,) = _sequences(1, seed=8)
    rows, _ = _teacher_rows(sequence, 16, seed=1)
    (got,) = _engine(model).score([sequence], _teacher([rows]), progress=_silent)
    logits_TV, ids = _logits(model, sequence).float(), torch.from_numpy(rows.token_ids.astype(np.int64))
    nothing = torch.zeros(0)
    student = StudentLogits(
        logits_TV.logsumexp(-1),
        nothing,
        logits_TV.gather(1, ids),
        nothing,
        logits_TV.scatter(1, ids, -torch.inf).logsumexp(-1),
    )
    teacher = TeacherLogits(
        *(torch.from_numpy(getattr(rows, name)) for name in ("logits", "logsumexp", "entropy", "gold_logit")),
        torch.from_numpy(rows.gold_rank),
        log_tail_T=torch.from_numpy(rows.log_tail),
    )
    loss = ForwardKl(DistillationConfig(loss="forward_kl"), ROWS)(student, teacher)
    assert got.kl == pytest.approx(float(loss.sum()), abs=2e-5 * got.tokens)


def test_tokens_that_the_teacher_was_not_asked_for_are_not_compared(model: Any) -> None:
    sequences = _sequences(3)
    rows = [_teacher_rows(sequence, 16, seed)[0] for seed, sequence in enumerate(sequences)]
    untaught = [int(sequences[0].answer_ids[0]), int(sequences[1].answer_ids[-1])]
    found = _engine(model).score(sequences, _teacher(rows, untaught), progress=_silent)
    for place, (sequence, got) in enumerate(zip(sequences, found, strict=True)):
        kept = ~np.isin(sequence.answer_ids, untaught)
        assert got.compared == kept.sum()
        single = [
            _engine(model).score(
                [AnsweredSequence(sequence.ids[: at + 1], [(int(at), 1)])],
                _teacher([rows[place].take(np.array([number]))]),
                progress=_silent,
            )[0]
            for number, at in enumerate(sequence.answer_positions)
            if kept[number]
        ]
        assert got.kl == pytest.approx(sum(each.kl for each in single), abs=1e-4)
        assert got.agreement == sum(each.agreement for each in single)


@pytest.mark.parametrize("name", ["adapter", "soft cap", "own way"])
def test_adapters_and_other_heads_are_scored_alike(model: Any, name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    if name == "adapter":
        lora = peft.LoraConfig(r=2, target_modules=["q_proj", "lm_head"], init_lora_weights=False)
        own = peft.get_peft_model(transformers.Qwen3ForCausalLM(model.config), lora).eval()
    elif name == "soft cap":
        config = transformers.Gemma2Config(**tiny.SHAPE, vocab_size=ROWS, final_logit_softcapping=0.5)
        own = transformers.Gemma2ForCausalLM(config).eval()
    else:
        own = _Shifted(transformers.LlamaConfig(**tiny.SHAPE, vocab_size=ROWS)).eval()
    sequences = _sequences(4)
    for sequence, got in zip(sequences, _engine(own).score(sequences, progress=_silent), strict=True):
        logits_TV, gold_T = _logits(own, sequence), torch.from_numpy(sequence.answer_ids.astype(np.int64))
        expected = -logits_TV.log_softmax(-1).gather(1, gold_T[:, None]).sum()
        assert got.negative_log_likelihood == pytest.approx(float(expected), abs=2e-5 * got.tokens, rel=1e-5)


class _Shifted(transformers.LlamaForCausalLM):
    """A head that no configuration announces."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        output = super().forward(*args, **kwargs)
        output.logits = output.logits + torch.arange(output.logits.shape[-1]) / 50
        return output


def test_logits_of_all_answers_never_exist_at_once(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(likelihood.LOGITS, "cpu", 3 * ROWS)
    seen: list[int] = []
    hook = model.get_output_embeddings().register_forward_hook(lambda _m, inputs, _o: seen.append(inputs[0].shape[-2]))
    try:
        whole = _engine(model, batch_tokens=4000).score(_sequences(), progress=_silent)
    finally:
        hook.remove()
    assert max(seen[1:]) == 3, "the first is the probe of four tokens"
    monkeypatch.undo()
    once = _engine(model, batch_tokens=4000).score(_sequences(), progress=_silent)
    for one, other in zip(whole, once, strict=True):
        assert dataclasses.replace(one, negative_log_likelihood=0.0) == dataclasses.replace(
            other, negative_log_likelihood=0.0
        )
        assert one.negative_log_likelihood == pytest.approx(other.negative_log_likelihood, rel=1e-6)
    assert isinstance(once[0], Likelihood)
