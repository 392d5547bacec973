"""The Hugging Face teacher: one forward pass, logits at answer positions only.

Shape letters: B sequences, L tokens, T answer tokens of the batch, V rows of the `lm_head`, K ranks.
"""

from __future__ import annotations

import functools
import platform
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import transformers
from packaging.version import Version

from logitbank.configs import Config
from logitbank.configs.schema import ConfigError, ModelConfig
from logitbank.models.devices import local_device, local_processes
from logitbank.models.head import backbone_of, open_head
from logitbank.models.huggingface import load_causal_lm, require_quantization
from logitbank.models.weights import weights_hash
from logitbank.storage import TeacherRows
from logitbank.teacher_cache.answer_rows import AnswerReader, Unread, rows_of_logits
from logitbank.teacher_cache.engines.base import Opening, Sequenced
from logitbank.teacher_cache.prefixes.cache import PrefixCache
from logitbank.teacher_cache.sampling import Sampling, joined

BOOLEAN_LOGITS_TO_KEEP = Version("5.21")  # the first transformers that takes a mask of positions


class _Prepared(NamedTuple):
    """A batch as the model takes it, the positions (B, L) whose logits are wanted, and what is read of these."""

    input_ids_BL: torch.Tensor
    keep_BL: torch.Tensor
    options: Mapping[str, Any]
    gold_T: torch.Tensor
    sampling: Sampling | None


class HFTeacher:
    """A causal language model of transformers.

    Args:
        model: which one; `dtype` as the configuration says.
        dtype: see `models.huggingface.load_causal_lm`.
        tokenizer_size: rows at and above this are padding and never enter the top K.
        device: where to run.
        prefix_reuse: compute what the sequences of a batch share once, and keep it for later batches.
        device_map: spread the model over all devices (`auto` …) instead.
        load_in_8bit: quantise linear layers to 8 bits.
        load_in_4bit: quantise linear layers to 4 bits.
        excluded: token ids that never enter the top K either.

    Raises:
        ConfigError: transformers is too old, the model cannot be opened or quantised, or its state is not one of
            keys and values.
    """

    batches_itself = False

    def __init__(
        self,
        model: ModelConfig,
        *,
        dtype: str | None,
        tokenizer_size: int,
        device: torch.device,
        prefix_reuse: bool = False,
        device_map: str | None = None,
        load_in_8bit: bool = False,
        load_in_4bit: bool = False,
        excluded: Sequence[int] = (),
    ) -> None:
        _require_masks()
        self._config = model
        self._quantization = "nf4" if load_in_4bit else "int8" if load_in_8bit else None
        if self._quantization is not None:
            require_quantization(f"teacher.load_in_{4 if load_in_4bit else 8}bit")
        self._model = load_causal_lm(
            model,
            dtype=dtype,
            device=device,
            load_in_4bit=load_in_4bit,
            load_in_8bit=load_in_8bit,
            device_map=device_map,
        )
        self._device: torch.device = self._model.get_input_embeddings().weight.device
        self.vocab_size = int(self._model.get_output_embeddings().weight.shape[0])
        self._tokenizer_size = min(tokenizer_size, self.vocab_size)
        self._excluded = tuple(excluded)
        self._prefixes = PrefixCache(self._model, model.name, self._device) if prefix_reuse else None

    @staticmethod
    def check(config: Config) -> None:
        """See `TeacherOpener.check`: it honours every key."""

    @staticmethod
    def finds_prefixes(config: Config) -> bool:
        """See `TeacherOpener.finds_prefixes`."""
        return config.teacher.prefix_reuse

    @staticmethod
    def require(config: Config, environment: Mapping[str, str]) -> None:
        """See `TeacherOpener.require`."""
        _require_masks()
        if local_processes(environment) > 1 and config.teacher.device_map is not None:
            raise ConfigError(
                f"teacher.device_map: {config.teacher.device_map} spreads one teacher over all devices, but several "
                "processes were launched on this machine; launch only one, or set it to null"
            )

    @classmethod
    def open(cls, opening: Opening) -> HFTeacher:
        """See `TeacherOpener.open`."""
        teacher = opening.config.teacher
        return cls(
            opening.model,
            dtype=teacher.dtype,
            tokenizer_size=opening.tokenizer_size,
            device=local_device(opening.environment),
            prefix_reuse=teacher.prefix_reuse,
            device_map=teacher.device_map,
            load_in_8bit=teacher.load_in_8bit,
            load_in_4bit=teacher.load_in_4bit,
            excluded=opening.excluded,
        )

    @property
    def reuses_prefixes(self) -> bool:
        """See `TeacherEngine.reuses_prefixes`."""
        return self._prefixes is not None

    def identity(self) -> Mapping[str, Any]:
        """See `TeacherEngine.identity`."""
        return {
            "model": self._config.name,
            "revision": self._config.revision,
            "weights": weights_hash(self._config),
            "engine": "hf",
            "dtype": str(self._model.dtype).removeprefix("torch."),
            "attention": self._model.config._attn_implementation,
            "device": self._device.type,
            "quantization": self._quantization,
            "prefix_reuse": self.reuses_prefixes,
            "versions": {
                "torch": torch.__version__.split("+")[0],
                "transformers": transformers.__version__,
                "machine": platform.machine(),
            },
        }

    def score(self, batch: Sequence[Sequenced], top_k: int) -> TeacherRows:
        """Teacher rows of one batch; errors as of `score_batches`."""
        (rows,) = self.score_batches([batch], top_k)
        return rows

    def score_batches(self, batches: Iterable[Sequence[Sequenced]], top_k: int) -> Iterator[TeacherRows]:
        """See `TeacherEngine.score_batches`.

        All spans of a sequence are scored in one forward pass. Sequences are padded on the right. No position
        looks to its right, so the padding needs no mask; the logits of an answer token are one position before it.
        On a CPU, last hidden states are collected until the `lm_head` can be read for many answer tokens at once.

        Raises:
            torch.OutOfMemoryError: a batch is too large for the device.
        """
        try:
            if self._reader is None:
                for batch in batches:
                    yield self._read_logits(batch, top_k)
                return
            waiting: list[Unread] = []
            tokens, enough = 0, self._reader.enough(self._device)
            for batch in batches:
                waiting.append(self._last_hidden(batch))
                tokens += len(waiting[-1].gold_T)
                if tokens >= enough:
                    yield from self._reader.read_all(waiting, top_k)
                    waiting, tokens = [], 0
            yield from self._reader.read_all(waiting, top_k)
        except torch.OutOfMemoryError:
            if self._prefixes is not None:
                self._prefixes.clear()
            raise

    def _prepared(self, batch: Sequence[Sequenced]) -> _Prepared:
        shared = batch[0].shared if self._prefixes is not None else 0
        longest = max(map(len, batch)) - shared
        input_ids_BL = torch.zeros(len(batch), longest, dtype=torch.long)
        keep_BL = torch.zeros(len(batch), longest, dtype=torch.bool)
        for row, item in enumerate(batch):
            input_ids_BL[row, : len(item) - shared] = torch.from_numpy(item.read_ids[shared:].astype(np.int64))
            keep_BL[row, item.sequence.logit_positions - shared] = True
        options: dict[str, Any] = {"use_cache": False}
        if self._prefixes is not None and shared:
            options = {
                "use_cache": True,
                "past_key_values": self._prefixes.get(batch[0].sequence.ids[:shared]),
                "position_ids": torch.arange(shared, shared + longest, device=self._device)[None],
            }
        gold_T = torch.from_numpy(np.concatenate([item.sequence.answer_ids for item in batch]).astype(np.int64))
        return _Prepared(input_ids_BL, keep_BL, options, gold_T, joined([item.sampling for item in batch]))

    @torch.inference_mode()
    def _read_logits(self, batch: Sequence[Sequenced], top_k: int) -> TeacherRows:
        """The rows of a batch from logits that the model makes itself."""
        made = self._prepared(batch)
        logits_TV = self._answer_logits(made.input_ids_BL, made.keep_BL, made.options)
        excluded = torch.tensor(self._excluded, device=logits_TV.device) if self._excluded else None
        gold_T = made.gold_T.to(logits_TV.device)
        return rows_of_logits(logits_TV, gold_T, top_k, self._tokenizer_size, excluded, made.sampling)

    @torch.inference_mode()
    def _last_hidden(self, batch: Sequence[Sequenced]) -> Unread:
        """What the `lm_head` is given for the answer tokens of a batch."""
        made = self._prepared(batch)
        # Found here: a mask on the device would have to be waited for.
        places_T = made.keep_BL.flatten().nonzero()[:, 0]
        hidden_BLD = backbone_of(self._model)(input_ids=self._sent(made.input_ids_BL), **made.options).last_hidden_state
        places_T = places_T.to(hidden_BLD.device, non_blocking=True)
        return Unread(hidden_BLD.flatten(0, 1)[places_T], made.gold_T, made.sampling)

    def _sent(self, tensor: torch.Tensor) -> torch.Tensor:
        """The tensor where the model reads; a GPU copies it while the processor continues."""
        if self._device.type == "cuda":
            tensor = tensor.pin_memory()
        return tensor.to(self._device, non_blocking=True)

    def _answer_logits(
        self, input_ids_BL: torch.Tensor, keep_BL: torch.Tensor, options: Mapping[str, Any]
    ) -> torch.Tensor:
        """(T, V) logits at the kept positions, as the model itself makes them."""
        tokens = int(keep_BL.sum())
        logits_TV = self._model(
            input_ids=self._sent(input_ids_BL), logits_to_keep=self._sent(keep_BL), **options
        ).logits
        logits_TV = logits_TV.reshape(-1, self.vocab_size)
        if len(logits_TV) != tokens:
            raise ConfigError(
                f"model.name: {self._config.name} ignores a boolean logits_to_keep (expected {tokens} rows of "
                f"logits, got {len(logits_TV)}); use a teacher of another architecture"
            )
        return logits_TV

    @functools.cached_property
    def _reader(self) -> AnswerReader | None:
        """What reads answer tokens from hidden states; None if the model's logits come about otherwise."""
        head = open_head(self._model)
        return AnswerReader(head, self.vocab_size, self._tokenizer_size, self._excluded) if head else None


def _require_masks() -> None:
    """Raise `ConfigError` if transformers is older than the mask of positions that `score` gives it."""
    if Version(transformers.__version__) < BOOLEAN_LOGITS_TO_KEEP:
        raise ConfigError(
            f"teacher.engine: hf needs transformers {BOOLEAN_LOGITS_TO_KEEP} or newer, got "
            f"{transformers.__version__}; install it, or set teacher.engine=vllm"
        )
