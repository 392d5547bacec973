"""Greedy generation and answer likelihoods with transformers.

Shape legend: B rows of a batch, S positions of the longest row, V vocabulary.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers import GenerationConfig

from logitbank.configs import Config, ConfigError
from logitbank.evaluation.checkpoints import Checkpoint
from logitbank.evaluation.engines.base import Request
from logitbank.models.devices import local_device
from logitbank.models.huggingface import load_causal_lm, load_tokenizer
from logitbank.tasks.prompts import PromptEncoder


class HfEngine:
    """Batches of similar length, left-padded, under a budget of tokens."""

    def __init__(self, model: Any, tokenizer: Any, *, batch_tokens: int) -> None:
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

    @classmethod
    def open(cls, config: Config, checkpoint: Checkpoint | None) -> HfEngine:
        """Load the base model, a checkpoint in its place, or an adapter on top of it.

        Raises:
            ConfigError: what cannot be opened, or an adapter that does not fit the model.
        """
        device = local_device(os.environ)
        if checkpoint is None or checkpoint.is_adapter:
            model = load_causal_lm(config.model, device=device)
            tokenizer = load_tokenizer(config.model)
        else:
            own = dataclasses.replace(config.model, name=str(checkpoint.path.resolve()), revision=None)
            model = load_causal_lm(own, device=device)
            has_tokenizer = (checkpoint.path / "tokenizer_config.json").is_file()
            tokenizer = load_tokenizer(own if has_tokenizer else config.model)
        if checkpoint is not None and checkpoint.is_adapter:
            model = _with_adapter(model, checkpoint)
        return cls(model.eval(), tokenizer, batch_tokens=config.evaluation.batch_tokens)

    @torch.inference_mode()
    def generate(self, requests: Sequence[Request], *, progress: Callable[[int], object]) -> list[str]:
        """See `Engine.generate`."""
        outputs = [""] * len(requests)
        lengths = [len(request.prompt_ids) + request.max_new_tokens for request in requests]
        for batch in length_sorted_batches(lengths, self.batch_tokens):
            texts = self._generate_batch([requests[index] for index in batch])
            for index, text in zip(batch, texts, strict=True):
                outputs[index] = text
            progress(len(batch))
        return outputs

    @torch.inference_mode()
    def answer_logprobs(
        self, prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]], *, progress: Callable[[int], object]
    ) -> list[float]:
        """See `Engine.answer_logprobs`; log-softmax in float32."""
        sums = [0.0] * len(prompts)
        rows = [[*prompt, *answer] for prompt, answer in zip(prompts, answers, strict=True)]
        for batch in length_sorted_batches([len(row) for row in rows], self.batch_tokens):
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

    def _generate_batch(self, requests: Sequence[Request]) -> list[str]:
        ids_BS, mask_BS = self._left_pad([request.prompt_ids for request in requests])
        longest = max(request.max_new_tokens for request in requests)
        settings = GenerationConfig(
            do_sample=False, num_beams=1, max_new_tokens=longest, eos_token_id=self.stop_ids, pad_token_id=self.pad_id
        )
        generated = self.model.generate(input_ids=ids_BS, attention_mask=mask_BS, generation_config=settings)
        texts = []
        for request, row in zip(requests, generated[:, ids_BS.shape[1] :].tolist(), strict=True):
            answer = row[: request.max_new_tokens]
            ends = [position for position, token in enumerate(answer) if token in self.stop_ids]
            kept = answer[: ends[0]] if ends else answer
            texts.append(self.tokenizer.decode(kept, skip_special_tokens=True, clean_up_tokenization_spaces=False))
        return texts

    def _left_pad(self, rows: Sequence[Sequence[int]]) -> tuple[torch.Tensor, torch.Tensor]:
        """(B,S) int64 ids and mask, padded on the left so that every row ends at the same place."""
        longest = max(len(row) for row in rows)
        ids = [[self.pad_id] * (longest - len(row)) + list(row) for row in rows]
        mask = [[0] * (longest - len(row)) + [1] * len(row) for row in rows]
        device = self.model.device
        return torch.tensor(ids, device=device), torch.tensor(mask, device=device)


def length_sorted_batches(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Indices in batches of similar length, longest first, each of at most `budget` padded tokens.

    Longest first, so that what does not fit into memory fails at once. One row is always a batch.
    """
    order = sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
    batches: list[list[int]] = []
    for index in order:
        if batches and lengths[batches[-1][0]] * (len(batches[-1]) + 1) <= budget:
            batches[-1].append(index)
        else:
            batches.append([index])
    return batches


def _with_adapter(model: Any, checkpoint: Checkpoint) -> Any:
    from peft import PeftModel

    try:
        return PeftModel.from_pretrained(model, str(checkpoint.path))
    except (OSError, ValueError, RuntimeError, KeyError, TypeError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ConfigError(
            f"--checkpoint: adapter {checkpoint.path} does not fit model.name={model.config.name_or_path}: {reason}"
        ) from error
