"""Generation and answer likelihoods with vLLM."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from typing import Any

from logitbank.configs import Config, ConfigError
from logitbank.evaluation.checkpoints import ADAPTER_CONFIG, Checkpoint, opened_models
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
from logitbank.models.huggingface import load_tokenizer, text_config
from logitbank.models.vllm import open_vllm
from logitbank.sequences import AnsweredSequence
from logitbank.tasks.prompts import PromptEncoder

LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # sizes that vLLM makes room for
KL_REFUSED = (
    "--store: vLLM does not return logits to compare with a teacher's; set evaluation.engine=hf, or leave --store out"
)
ROOM_FOR_ANSWERS = 2048  # tokens after the longest prompt; more than any gold answer of the tasks has


def open_vllm_engine(config: Config, checkpoint: Checkpoint | None) -> VllmEngine:
    """Load the base model, a checkpoint in its place, or an adapter on top of it.

    Raises:
        ConfigError: vLLM is not installed, or what it cannot open.
    """
    weights, tokenizer = opened_models(config.model, checkpoint)
    options, adapter = {}, None
    if checkpoint is not None and checkpoint.is_adapter:
        options = {"enable_lora": True, "max_loras": 1, "max_lora_rank": _room_for_rank(checkpoint)}
    context = getattr(text_config(weights), "max_position_embeddings", None)
    longest = config.evaluation.max_prompt_tokens + max([ROOM_FOR_ANSWERS, *config.evaluation.max_new_tokens.values()])
    llm = open_vllm(
        "evaluation.engine",
        weights,
        config.vllm,
        dtype=None,
        batch_tokens=config.evaluation.batch_tokens,
        max_model_len=min(longest, context or longest),
        **options,
    )
    if checkpoint is not None and checkpoint.is_adapter:
        from vllm.lora.request import LoRARequest  # optional package

        adapter = LoRARequest("adapter", 1, str(checkpoint.path.resolve()))
    return VllmEngine(llm, load_tokenizer(tokenizer), context_tokens=context, adapter=adapter)


class VllmEngine:
    """vLLM forms the batches; every prompt is handed over as token ids."""

    def __init__(self, llm: Any, tokenizer: Any, *, context_tokens: int | None, adapter: Any = None) -> None:
        """Wrap an opened model.

        Args:
            llm: a `vllm.LLM` that returns `raw_logprobs`.
            tokenizer: decides the stop tokens and decodes.
            context_tokens: longest prompt and answer that the model can take.
            adapter: a `LoRARequest` to be used for all prompts.
        """
        self.tokenizer = tokenizer
        self.context_tokens = context_tokens
        self.stop_ids = PromptEncoder(tokenizer).stop_ids
        self._llm = llm
        self._adapter = adapter

    def generate(self, requests: Sequence[Request], *, progress: Callable[[int], object]) -> list[Answer]:
        """See `Engine.generate`."""
        from vllm import SamplingParams

        parameters = [
            SamplingParams(
                temperature=0,
                max_tokens=request.max_new_tokens,
                stop_token_ids=self.stop_ids,
                ignore_eos=True,  # the stop tokens are all that ends an answer, as with transformers
                detokenize=False,
            )
            for request in requests
        ]
        outputs = self._run([request.prompt_ids for request in requests], parameters)
        progress(len(requests))
        return [decode_answer(self.tokenizer, list(output.outputs[0].token_ids), self.stop_ids) for output in outputs]

    def sample(self, draws: Sequence[Draw], sampling: Sampling, *, progress: Callable[[int], object]) -> list[Sample]:
        """See `Engine.sample`; vLLM draws by a seed of each answer."""
        from vllm import SamplingParams

        parameters = [
            SamplingParams(
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                seed=_seed_of(draw),
                max_tokens=draw.request.max_new_tokens,
                stop_token_ids=self.stop_ids,
                ignore_eos=True,
                detokenize=False,
            )
            for draw in draws
        ]
        outputs = self._run([draw.request.prompt_ids for draw in draws], parameters)
        progress(len(draws))
        ids = [list(output.outputs[0].token_ids) for output in outputs]
        return [sample_of(row, self.stop_ids, sampling.vocabulary) for row in ids]

    def answer_logprobs(
        self, prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]], *, progress: Callable[[int], object]
    ) -> list[float]:
        """See `Engine.answer_logprobs`."""
        asked = [
            (pair, [*prompt, *answer[:done]], token)
            for pair, (prompt, answer) in enumerate(zip(prompts, answers, strict=True))
            for done, token in enumerate(answer)
        ]
        sums = [0.0] * len(prompts)
        for (pair, _, _), told in zip(asked, self._ask([(ids, token) for _, ids, token in asked]), strict=True):
            sums[pair] += told.logprob
        progress(len(prompts))
        return sums

    def score(
        self,
        sequences: Sequence[AnsweredSequence],
        teacher: Teacher | None = None,
        *,
        progress: Callable[[int], object],
    ) -> list[Likelihood]:
        """See `Engine.score`.

        Raises:
            ConfigError: a teacher to compare with.
        """
        if teacher is not None:
            raise ConfigError(KL_REFUSED)
        found = []
        for sequence in sequences:
            ids, positions = sequence.ids.tolist(), sequence.answer_positions.tolist()
            told = self._ask([(ids[:position], ids[position]) for position in positions])
            likelihood = -sum(each.logprob for each in told)
            found.append(Likelihood(sequence.answer_length, likelihood, sum(each.rank == 1 for each in told)))
            progress(1)
        return found

    def _ask(self, asked: Sequence[tuple[Sequence[int], int]]) -> list[Any]:
        """vLLM's `Logprob` of a token after each prompt.

        Each token is the only one allowed in a completion of one token, which leaves the raw log-probabilities and
        ranks as they are; equal beginnings are computed once. Log-probabilities of prompts would be one request a
        sequence, but vLLM 0.32 cannot give them with an adapter.
        """
        from vllm import SamplingParams

        parameters = [
            SamplingParams(
                temperature=0, max_tokens=1, logprobs=0, allowed_token_ids=[token], ignore_eos=True, detokenize=False
            )
            for _, token in asked
        ]
        outputs = self._run([ids for ids, _ in asked], parameters)
        return [output.outputs[0].logprobs[0][token] for (_, token), output in zip(asked, outputs, strict=True)]

    def _run(self, prompts: Sequence[Sequence[int]], parameters: Sequence[Any]) -> list[Any]:
        from vllm import TokensPrompt

        try:
            outputs: list[Any] = self._llm.generate(
                [TokensPrompt(prompt_token_ids=list(ids)) for ids in prompts],
                list(parameters),
                use_tqdm=False,
                lora_request=self._adapter,
            )
        except ValueError as error:
            if self._adapter is None:
                raise
            reason = str(error).strip().splitlines()[0]
            raise ConfigError(f"--checkpoint: vLLM cannot use the adapter {self._adapter.path}: {reason}") from error
        return outputs


def _seed_of(draw: Draw) -> int:
    """A number below 2⁶³ for each answer."""
    digest = hashlib.blake2b(f"{draw.seed}\n{draw.name}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def _room_for_rank(checkpoint: Checkpoint) -> int:
    rank = int(json.loads((checkpoint.path / ADAPTER_CONFIG).read_text(encoding="utf-8"))["r"])
    room = next((size for size in LORA_RANKS if size >= rank), None)
    if room is None:
        raise ConfigError(
            f"--checkpoint: vLLM supports adapters up to rank {LORA_RANKS[-1]}, {checkpoint.path} has {rank}; "
            "set evaluation.engine=hf"
        )
    return room
