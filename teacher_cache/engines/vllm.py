"""The vLLM teacher: sequences are prefilled as prompts, answers included, and their signal is read on the way.

One request per sequence: vLLM computes its hidden states in as few steps as fit, shares what requests begin with
alike, and its workers (`vllm_worker.py`) run the `lm_head` at answer positions alone. So no position of the context
has logits, and nothing is decoded.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from logitbank.configs import Config, ConfigError
from logitbank.configs.schema import ModelConfig, VllmConfig
from logitbank.models.devices import default_device, local_processes
from logitbank.models.huggingface import lm_head_rows
from logitbank.models.vllm import open_vllm, require_vllm, vllm_version
from logitbank.models.weights import weights_hash
from logitbank.storage import TeacherRows
from logitbank.teacher_cache.engines.base import Opening, Sequenced
from logitbank.teacher_cache.engines.vllm_worker import NUMBER, Asked
from logitbank.teacher_cache.sampling import joined

WORKER = "logitbank.teacher_cache.engines.vllm_worker.SignalWorker"


class VllmTeacher:
    """A causal language model of vLLM.

    Args:
        model: which one.
        settings: of vLLM.
        dtype: see `models.huggingface.load_causal_lm`.
        tokenizer_size: rows at and above this are padding and never enter the top K.
        batch_tokens: most tokens in one forward pass.
        max_tokens: of the longest sequence.
        prefix_reuse: compute what requests begin with alike once.
        excluded: token ids that never enter the top K either.

    Raises:
        ConfigError: vLLM is not installed, or cannot open the model.
    """

    reuses_prefixes = False  # it does, but finds them by itself
    batches_itself = True

    def __init__(
        self,
        model: ModelConfig,
        settings: VllmConfig,
        *,
        dtype: str | None,
        tokenizer_size: int,
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
        # The other model runner keeps its state elsewhere, and no CPU runs it; and a scheduler in this process
        # takes the same steps every time, so that a shard has the same bytes.
        os.environ["VLLM_USE_V2_MODEL_RUNNER"] = "0"
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        self._llm = open_vllm(
            "teacher.engine",
            model,
            settings,
            dtype=dtype,
            batch_tokens=batch_tokens,
            max_model_len=max_tokens,
            worker_extension_cls=WORKER,
            enable_prefix_caching=prefix_reuse,
        )

    @staticmethod
    def check(config: Config) -> None:
        """See `TeacherOpener.check`."""
        teacher = config.teacher
        if teacher.device_map is not None:
            raise ConfigError(
                f"teacher.device_map: only teacher.engine=hf spreads layers over devices (got {teacher.device_map}); "
                "with vllm set vllm.tensor_parallel"
            )
        for key, asked in (("load_in_4bit", teacher.load_in_4bit), ("load_in_8bit", teacher.load_in_8bit)):
            if asked:
                raise ConfigError(
                    f"teacher.{key}: only teacher.engine=hf quantises at load time; for vllm set teacher.model to a "
                    "quantised checkpoint"
                )

    @staticmethod
    def finds_prefixes(config: Config) -> bool:
        """See `TeacherOpener.finds_prefixes`: it finds them by itself."""
        return False

    @staticmethod
    def require(config: Config, environment: Mapping[str, str]) -> None:
        """See `TeacherOpener.require`."""
        require_vllm("teacher.engine")
        if local_processes(environment) > 1 and default_device().type != "cpu":
            raise ConfigError(
                "teacher.engine: vllm uses all visible devices, but several processes were launched on this machine; "
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
            "capture": "prefill",  # earlier versions decoded the given answer, with other last bits
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

    def score_batches(self, batches: Iterable[Sequence[Sequenced]], top_k: int) -> Iterator[TeacherRows]:
        """See `TeacherEngine.score_batches`."""
        return (self.score(batch, top_k) for batch in batches)

    def score(self, batch: Sequence[Sequenced], top_k: int) -> TeacherRows:
        """Teacher rows of one batch.

        Nothing is kept from one call to the next: the rows are a function of the batch alone.
        """
        self._llm.reset_prefix_cache()
        asked = Asked(
            positions=[item.sequence.logit_positions for item in batch],
            answer_ids=np.concatenate([item.sequence.answer_ids for item in batch]),
            sampling=joined([item.sampling for item in batch]),
            top_k=top_k,
            vocab_size=self.vocab_size,
            tokenizer_size=self._tokenizer_size,
            excluded=self._excluded,
        )
        self._llm.collective_rpc("ask_signal", args=(asked,))
        self._prefill(batch, range(len(batch)), use_cache=self._prefix_reuse)
        # What is cached is not computed again. Where that was more than a context (equal prompts and
        # beginnings of answers), the sequence is read again as a whole.
        missing, *_ = self._llm.collective_rpc("missing_signal")
        if missing:
            self._prefill(batch, missing, use_cache=False)
        rows: TeacherRows = self._llm.collective_rpc("take_signal")[0]
        return rows

    def _prefill(self, batch: Sequence[Sequenced], numbers: Sequence[int], *, use_cache: bool) -> None:
        """Have vLLM read the sequences of these numbers; the one token that it generates is of no use."""
        from vllm import SamplingParams, TokensPrompt

        self._llm.generate(
            [TokensPrompt(prompt_token_ids=batch[number].read_ids.tolist()) for number in numbers],
            [
                SamplingParams(
                    temperature=0,
                    max_tokens=1,
                    detokenize=False,
                    skip_reading_prefix_cache=not use_cache,
                    extra_args={NUMBER: number},
                )
                for number in numbers
            ],
            use_tqdm=False,
        )
