"""Generation and answer likelihoods with transformers.

Shape legend: B rows of a batch, S (padded on the left) or L positions of the longest row, T answer tokens of a batch,
D hidden size, V rows of the `lm_head`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, PreTrainedTokenizerBase

from logitbank.configs import Config, ConfigError
from logitbank.evaluation.checkpoints import Checkpoint, opened_models
from logitbank.evaluation.engines.base import (
    Answer,
    Draw,
    Likelihood,
    Request,
    Sample,
    Sampling,
    Teacher,
    decode_answer,
    sample_of,
)
from logitbank.evaluation.engines.drawing import DrawnTokens
from logitbank.evaluation.engines.likelihood import TokenScores, token_scores
from logitbank.models.batches import batches_by_length
from logitbank.models.devices import local_device
from logitbank.models.head import Transform, backbone_of, causal_lm, find_head
from logitbank.models.huggingface import load_causal_lm, load_tokenizer
from logitbank.sequences import AnsweredSequence
from logitbank.tasks.prompts import PromptEncoder

# What a batch of generation costs beside its tokens, in tokens: each of its new tokens is a forward pass of its own,
# so padding is cheap beside another batch.
GENERATION_COST = 4096


def open_hf(config: Config, checkpoint: Checkpoint | None) -> HfEngine:
    """Load the base model, a checkpoint in its place, or an adapter on top of it.

    Raises:
        ConfigError: what cannot be opened, or an adapter that does not fit the model.
    """
    weights, tokenizer = opened_models(config.model, checkpoint)
    model = load_causal_lm(weights, device=local_device(os.environ))
    if checkpoint is not None and checkpoint.is_adapter:
        model = _with_adapter(model, checkpoint)
    return HfEngine(model.eval(), load_tokenizer(tokenizer), batch_tokens=config.evaluation.batch_tokens)


class HfEngine:
    """Batches of similar length, left-padded, under a budget of tokens."""

    def __init__(self, model: Any, tokenizer: PreTrainedTokenizerBase, *, batch_tokens: int) -> None:
        """Wrap a loaded model.

        Args:
            model: a causal LM in evaluation mode, with or without adapter.
            tokenizer: its tokenizer; decides the stop tokens and decodes.
            batch_tokens: most tokens in one batch, padding and tokens to be generated included. A
                single prompt longer than that is a batch of its own.
        """
        self.model = model
        self.tokenizer = tokenizer
        self.batch_tokens = batch_tokens
        self.stop_ids = PromptEncoder(tokenizer).stop_ids
        self.context_tokens = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        pad = tokenizer.pad_token_id
        self.pad_id: int = self.stop_ids[0] if pad is None else pad
        # A checkpoint's own sampling defaults (temperature, repetition penalty) would not be greedy.
        inner = model.get_base_model() if hasattr(model, "get_base_model") else model
        inner.generation_config = GenerationConfig()

    @torch.inference_mode()
    def generate(self, requests: Sequence[Request], *, progress: Callable[[int], object]) -> list[Answer]:
        """See `Engine.generate`."""
        answers: dict[int, Answer] = {}
        lengths = [len(request.prompt_ids) + request.max_new_tokens for request in requests]
        for batch in batches_by_length(lengths, self.batch_tokens, batch_cost=GENERATION_COST):
            answers.update(zip(batch, self._generate_batch([requests[index] for index in batch]), strict=True))
            progress(len(batch))
        return [answers[index] for index in range(len(requests))]

    @torch.inference_mode()
    def sample(self, draws: Sequence[Draw], sampling: Sampling, *, progress: Callable[[int], object]) -> list[Sample]:
        """See `Engine.sample`."""
        found: dict[int, Sample] = {}
        lengths = [len(draw.request.prompt_ids) + draw.request.max_new_tokens for draw in draws]
        for batch in batches_by_length(lengths, self.batch_tokens, batch_cost=GENERATION_COST):
            own = [draws[index] for index in batch]
            rows = self._generated([draw.request for draw in own], DrawnTokens(own, sampling, self.model.device))
            found.update(
                (index, sample_of(row, self.stop_ids, sampling.vocabulary))
                for index, row in zip(batch, rows, strict=True)
            )
            progress(len(batch))
        return [found[index] for index in range(len(draws))]

    @torch.inference_mode()
    def answer_logprobs(
        self, prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]], *, progress: Callable[[int], object]
    ) -> list[float]:
        """See `Engine.answer_logprobs`; log-softmax in float32."""
        sums = [0.0] * len(prompts)
        rows = [[*prompt, *answer] for prompt, answer in zip(prompts, answers, strict=True)]
        for batch in batches_by_length([len(row) for row in rows], self.batch_tokens):
            ids_BS, mask_BS = self._left_pad([rows[index] for index in batch])
            keep = max(len(answers[index]) for index in batch)
            positions_BS = (mask_BS.cumsum(dim=1) - 1).clamp(min=0)
            # position j predicts token j + 1: one more than the longest answer, the last one unused
            logits = self.model(
                input_ids=ids_BS, attention_mask=mask_BS, position_ids=positions_BS, logits_to_keep=keep + 1
            ).logits[:, :-1]
            targets = ids_BS[:, -keep:]
            logprobs = logits.float().log_softmax(dim=-1).gather(-1, targets.unsqueeze(-1)).squeeze(-1)
            for row, index in enumerate(batch):
                sums[index] = float(logprobs[row, keep - len(answers[index]) :].double().sum())
            progress(len(batch))
        return sums

    @torch.inference_mode()
    def score(
        self,
        sequences: Sequence[AnsweredSequence],
        teacher: Teacher | None = None,
        *,
        progress: Callable[[int], object],
    ) -> list[Likelihood]:
        """See `Engine.score`; the head is applied to answer positions alone, a chunk of them at a time."""
        found: dict[int, Likelihood] = {}
        transform = find_head(causal_lm(self.model))
        # what computes its logits in its own way is asked for one sequence at a time
        budget = self.batch_tokens if transform is not None else 0
        for batch in batches_by_length([len(sequence) for sequence in sequences], budget):
            rows = None if teacher is None else teacher.rows(batch)
            own = [sequences[index] for index in batch]
            logits_of, vocab_size = self._answer_logits(own, transform)
            gold = np.concatenate([sequence.answer_ids for sequence in own]).astype(np.int64)
            gold_T = torch.from_numpy(gold).to(self.model.device)
            scores = token_scores(logits_of, gold_T, vocab_size, rows, teacher.vocab_size if teacher else 0)
            untaught = teacher.untaught if teacher is not None else ()
            found.update(zip(batch, _by_sequence(own, gold, scores, untaught), strict=True))
            progress(len(batch))
        return [found[index] for index in range(len(sequences))]

    def _answer_logits(
        self, sequences: Sequence[AnsweredSequence], transform: Transform | None
    ) -> tuple[Callable[[slice], torch.Tensor], int]:
        """What gives the logits of a slice of all answer tokens of a batch, and how many a token has.

        Sequences are padded on the right: no position looks there, so the padding needs no mask.
        """
        longest = max(len(sequence) for sequence in sequences) - 1  # the last token predicts nothing that counts
        ids_BL = torch.full((len(sequences), longest), self.pad_id)
        for row, sequence in enumerate(sequences):
            ids_BL[row, : len(sequence) - 1] = torch.from_numpy(sequence.ids[:-1].astype(np.int64))
        ids_BL = ids_BL.to(self.model.device)
        places = [row * longest + sequence.logit_positions for row, sequence in enumerate(sequences)]
        place_T = torch.from_numpy(np.concatenate(places)).to(self.model.device)
        lm = causal_lm(self.model)
        if transform is None:
            logits_TV = self.model(input_ids=ids_BL, use_cache=False).logits.flatten(0, 1)
            return lambda part: logits_TV[place_T[part]], logits_TV.shape[1]
        hidden = backbone_of(lm)(input_ids=ids_BL, use_cache=False).last_hidden_state
        hidden_TD, head = hidden.flatten(0, 1)[place_T], lm.get_output_embeddings()
        return lambda part: transform(head(hidden_TD[part])), int(head.weight.shape[0])

    def _generate_batch(self, requests: Sequence[Request]) -> list[Answer]:
        return [decode_answer(self.tokenizer, row, self.stop_ids) for row in self._generated(requests)]

    def _generated(self, requests: Sequence[Request], *changes: LogitsProcessor) -> list[list[int]]:
        """The tokens that follow each prompt, padded after the stop token; the likeliest after the changes."""
        ids_BS, mask_BS = self._left_pad([request.prompt_ids for request in requests])
        longest = max(request.max_new_tokens for request in requests)
        settings = GenerationConfig(
            do_sample=False, num_beams=1, max_new_tokens=longest, eos_token_id=self.stop_ids, pad_token_id=self.pad_id
        )
        generated = self.model.generate(
            input_ids=ids_BS,
            attention_mask=mask_BS,
            generation_config=settings,
            logits_processor=LogitsProcessorList(changes),
        )
        new = generated[:, ids_BS.shape[1] :].tolist()
        return [row[: request.max_new_tokens] for request, row in zip(requests, new, strict=True)]

    def _left_pad(self, rows: Sequence[Sequence[int]]) -> tuple[torch.Tensor, torch.Tensor]:
        """(B,S) int64 ids and mask, padded on the left so that every row ends at the same place."""
        longest = max(len(row) for row in rows)
        ids = [[self.pad_id] * (longest - len(row)) + list(row) for row in rows]
        mask = [[0] * (longest - len(row)) + [1] * len(row) for row in rows]
        device = self.model.device
        return torch.tensor(ids, device=device), torch.tensor(mask, device=device)


def _by_sequence(
    sequences: Sequence[AnsweredSequence], gold: NDArray[np.int64], scores: TokenScores, untaught: Sequence[int]
) -> list[Likelihood]:
    """Sums over each sequence's tokens."""
    found, start = [], 0
    compared = ~np.isin(gold, np.asarray(untaught, dtype=np.int64))
    for sequence in sequences:
        own = slice(start, start + sequence.answer_length)
        start = own.stop
        tokens = (
            sequence.answer_length,
            float(scores.negative_log_likelihood[own].sum()),
            int(scores.correct[own].sum()),
        )
        if not len(scores.kl):
            found.append(Likelihood(*tokens))
            continue
        taught = torch.from_numpy(compared[own])
        kl, agreement = scores.kl[own][taught], scores.agreement[own][taught]
        found.append(Likelihood(*tokens, len(kl), float(kl.sum()), int(agreement.sum())))
    return found


def _with_adapter(model: Any, checkpoint: Checkpoint) -> Any:
    from peft import PeftModel  # slow to import, and needed for adapters alone

    try:
        return PeftModel.from_pretrained(model, str(checkpoint.path))
    except (OSError, ValueError, RuntimeError, KeyError, TypeError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ConfigError(
            f"--checkpoint: adapter {checkpoint.path} does not fit model.name={model.config.name_or_path}: {reason}"
        ) from error
