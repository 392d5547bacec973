"""The vLLM teacher: the given answers are decoded step by step, with the whole signal of every step.

One request per answer span: vLLM reads what stands before it, shares what requests have in common (a conversation's
later turns begin with its earlier ones), and "generates" the given answer, which its logits processor
(`vllm_processor.py`) forces. So no position of the context has logits, and every token is computed once.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from logitbank.configs import Config, ConfigError
from logitbank.configs.schema import ModelConfig, VllmConfig
from logitbank.models.devices import default_device, local_processes
from logitbank.models.huggingface import lm_head_rows
from logitbank.models.vllm import open_vllm, require_vllm, vllm_version
from logitbank.models.weights import weights_hash
from logitbank.storage import TeacherRows, concatenate
from logitbank.teacher_cache.engines.base import Opening, Sequenced
from logitbank.teacher_cache.engines.carriers import CARRIERS, unpack

PROCESSOR = "logitbank.teacher_cache.engines.vllm_processor:SignalProcessor"


class VllmTeacher:
    """A causal language model of vLLM.

    Args:
        model: which one.
        settings: of vLLM.
        dtype: see `models.huggingface.load_causal_lm`.
        tokenizer_size: rows at and above this are padding and never enter the top K.
        top_k: most ranks that will be asked for.
        batch_tokens: most tokens in one forward pass.
        max_tokens: of the longest sequence.
        prefix_reuse: compute what requests begin with alike once.
        excluded: token ids that never enter the top K either.

    Raises:
        ConfigError: vLLM is not installed, or cannot open the model.
    """

    reuses_prefixes = False  # it does, but finds them by itself
    batches_itself = True
    spare_ranks = CARRIERS

    def __init__(
        self,
        model: ModelConfig,
        settings: VllmConfig,
        *,
        dtype: str | None,
        tokenizer_size: int,
        top_k: int,
        batch_tokens: int,
        max_tokens: int,
        prefix_reuse: bool = True,
        excluded: Sequence[int] = (),
    ) -> None:
        self._config = model
        self._prefix_reuse = prefix_reuse
        self._tensor_parallel = settings.tensor_parallel
        self.vocab_size = lm_head_rows(model)
        self._tokenizer_size = min(tokenizer_size, self.vocab_size)
        self._excluded = list(excluded)
        # The other model runner has another interface for logits processors, which no CPU runs; and a
        # scheduler in this process takes the same steps every time, so that a shard has the same bytes.
        os.environ["VLLM_USE_V2_MODEL_RUNNER"] = "0"
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        self._llm = open_vllm(
            "teacher.engine",
            model,
            settings,
            dtype=dtype,
            batch_tokens=batch_tokens,
            max_model_len=max_tokens,
            logits_processors=[PROCESSOR],
            logprobs_mode="processed_logits",
            max_logprobs=top_k + CARRIERS,
            enable_prefix_caching=prefix_reuse,
        )

    @staticmethod
    def check(config: Config) -> None:
        """See `TeacherOpener.check`."""
        teacher = config.teacher
        if teacher.device_map is not None:
            raise ConfigError(
                f"teacher.device_map: only teacher.engine=hf spreads layers (got {teacher.device_map}); "
                "with vllm set vllm.tensor_parallel"
            )
        if teacher.signal != "topk":
            raise ConfigError(
                f"teacher.signal: vllm returns the largest logits alone; expected topk, got {teacher.signal}; "
                "set teacher.engine=hf to draw"
            )
        for key, asked in (("load_in_4bit", teacher.load_in_4bit), ("load_in_8bit", teacher.load_in_8bit)):
            if asked:
                raise ConfigError(
                    f"teacher.{key}: only teacher.engine=hf quantises while it loads; "
                    "give vllm a quantised checkpoint as teacher.model"
                )

    @staticmethod
    def require(config: Config, environment: Mapping[str, str]) -> None:
        """See `TeacherOpener.require`."""
        require_vllm("teacher.engine")
        if local_processes(environment) > 1 and default_device().type != "cpu":
            raise ConfigError(
                "teacher.engine: vllm takes all devices it sees, but several processes were launched on this machine; "
                "start each with its own CUDA_VISIBLE_DEVICES and --worker I/N, "
                "or launch one with vllm.tensor_parallel"
            )

    @classmethod
    def open(cls, opening: Opening) -> VllmTeacher:
        """See `TeacherOpener.open`."""
        teacher = opening.config.teacher
        return cls(
            opening.model,
            opening.config.vllm,
            dtype=teacher.dtype,
            tokenizer_size=opening.tokenizer_size,
            top_k=teacher.top_k,
            batch_tokens=teacher.batch_tokens,
            max_tokens=opening.longest,
            prefix_reuse=teacher.prefix_reuse,
            excluded=opening.excluded,
        )

    def identity(self) -> Mapping[str, Any]:
        """See `TeacherEngine.identity`."""
        return {
            "model": self._config.name,
            "revision": self._config.revision,
            "weights": weights_hash(self._config),
            "engine": "vllm",
            "dtype": str(self._llm.model_config.dtype).removeprefix("torch."),
            "device": "cuda" if torch.cuda.is_available() else "cpu",
            "tensor_parallel": self._tensor_parallel,
            "prefix_reuse": self._prefix_reuse,
            "versions": {
                "vllm": vllm_version("teacher.engine"),
                "torch": torch.__version__.split("+")[0],
                "machine": platform.machine(),
            },
        }

    def score(self, batch: Sequence[Sequenced], top_k: int) -> TeacherRows:
        """See `TeacherEngine.score`.

        Nothing is kept from one call to the next: the rows are a function of the batch alone.
        """
        from vllm import SamplingParams, TokensPrompt

        self._llm.reset_prefix_cache()
        spans = [(i, number, *span) for i, item in enumerate(batch) for number, span in enumerate(item.sequence.spans)]
        # First spans first: what they are asked is the beginning of what later ones are. Then long answers, so that
        # few of them are left over when the others are done.
        spans.sort(key=lambda span: (span[1], -span[3]))
        answers = [batch[i].sequence.ids[start : start + length].tolist() for i, _, start, length in spans]
        outputs = self._llm.generate(
            [TokensPrompt(prompt_token_ids=batch[i].sequence.ids[:start].tolist()) for i, _, start, _ in spans],
            [
                SamplingParams(
                    temperature=0,
                    max_tokens=len(answer),
                    ignore_eos=True,
                    logprobs=top_k + CARRIERS,
                    flat_logprobs=True,
                    detokenize=False,
                    extra_args={
                        "logitbank": {
                            "answer_ids": answer,
                            "top_k": top_k,
                            "tokenizer_size": self._tokenizer_size,
                            "excluded": self._excluded,
                        }
                    },
                )
                for answer in answers
            ],
            use_tqdm=False,
        )
        parts: dict[tuple[int, int], TeacherRows] = {}
        for (i, number, _, length), answer, output in zip(spans, answers, outputs, strict=True):
            completion = output.outputs[0]
            if list(completion.token_ids) != answer:
                raise RuntimeError("vLLM generated other tokens than its logits processor forced; report this")
            shape = (length, 1 + CARRIERS + top_k)  # the generated token comes first
            token_ids = np.asarray(completion.logprobs.token_ids, dtype=np.int32).reshape(shape)
            values = np.asarray(completion.logprobs.logprobs, dtype=np.float32).reshape(shape)
            parts[i, number] = unpack(token_ids[:, 1:], values[:, 1:])
        return concatenate([parts[key] for key in sorted(parts)])
