"""The Hugging Face teacher: one forward pass, logits at answer positions only.

Shape letters: B sequences, L tokens, T answer tokens of the batch, V rows of the `lm_head`, K ranks.
"""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import torch
import transformers

from configs.models import load_causal_lm, require_quantization
from configs.schema import ConfigError, ModelConfig
from storage import TeacherRows
from storage.rows import concatenate
from teacher_cache.engine import Sequenced
from teacher_cache.prefix_cache import PrefixCache

# Logits worked on at once in float32: few enough for a CPU's cache, many enough to fill a GPU.
LOGIT_ELEMENTS = {"cpu": 1 << 21}
LOGIT_ELEMENTS_ACCELERATOR = 1 << 27


class HFTeacher:
    """A causal language model of transformers.

    Args:
        model: which one; `dtype` as the configuration says.
        dtype: see `configs.models.load_causal_lm`.
        tokenizer_size: rows at and above this are padding and never enter the top K.
        device: where to run.
        prefix_reuse: compute what the sequences of a batch share once, and keep it for later batches.
        device_map: spread the model over all devices (`auto` …) instead.
        load_in_8bit: quantise linear layers to 8 bits.
        load_in_4bit: quantise linear layers to 4 bits.

    Raises:
        ConfigError: the model cannot be opened or quantised, or its state is not one of keys and values.
    """

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
    ) -> None:
        self._config = model
        self._quantization = "nf4" if load_in_4bit else "int8" if load_in_8bit else None
        if self._quantization is not None:
            require_quantization(f"teacher.load_in_{4 if load_in_4bit else 8}bit", device)
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
        self._prefixes = PrefixCache(self._model, model.name, self._device) if prefix_reuse else None

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

    @torch.inference_mode()
    def score(self, batch: Sequence[Sequenced], top_k: int) -> TeacherRows:
        """See `TeacherEngine.score`.

        Sequences are padded on the right. No position looks to its right, so the padding needs no
        mask; the logits of answer token j are those of position `len(prompt) + j - 1`.

        Raises:
            torch.OutOfMemoryError: the batch is too large for the device.
        """
        try:
            return self._score(batch, top_k)
        except torch.OutOfMemoryError:
            if self._prefixes is not None:
                self._prefixes.clear()
            raise

    def _score(self, batch: Sequence[Sequenced], top_k: int) -> TeacherRows:
        shared = batch[0].shared if self._prefixes is not None else 0
        longest = max(map(len, batch)) - shared
        input_ids_BL = torch.zeros(len(batch), longest, dtype=torch.long)
        keep_BL = torch.zeros(len(batch), longest, dtype=torch.bool)
        for row, item in enumerate(batch):
            tokens = np.concatenate([item.prompt_ids[shared:], item.answer_ids[:-1]])
            input_ids_BL[row, : len(tokens)] = torch.from_numpy(tokens.astype(np.int64))
            keep_BL[row, len(item.prompt_ids) - 1 - shared : len(tokens)] = True
        options: dict[str, Any] = {"use_cache": False}
        if self._prefixes is not None and shared:
            options = {
                "use_cache": True,
                "past_key_values": self._prefixes.get(batch[0].prompt_ids[:shared]),
                "position_ids": torch.arange(shared, shared + longest, device=self._device)[None],
            }
        gold_T = torch.from_numpy(np.concatenate([item.answer_ids for item in batch]).astype(np.int64))
        logits_TV = self._model(
            input_ids=input_ids_BL.to(self._device), logits_to_keep=keep_BL.to(self._device), **options
        ).logits.reshape(-1, self.vocab_size)
        if len(logits_TV) != len(gold_T):
            raise ConfigError(
                f"model.name: {self._config.name} ignores a boolean logits_to_keep "
                f"(expected {len(gold_T)} rows of logits, got {len(logits_TV)}); "
                "its architecture cannot be a teacher"
            )
        step = max(1, LOGIT_ELEMENTS.get(self._device.type, LOGIT_ELEMENTS_ACCELERATOR) // self.vocab_size)
        parts = [
            signal(logits_TV[i : i + step], gold_T[i : i + step].to(logits_TV.device), top_k, self._tokenizer_size)
            for i in range(0, len(gold_T), step)
        ]
        return concatenate(parts)


def signal(logits_TV: torch.Tensor, gold_T: torch.Tensor, top_k: int, tokenizer_size: int) -> TeacherRows:
    """Top K and exact scalars of full logits, computed in float32 on the logits' device.

    Args:
        logits_TV: (T, V) raw logits, any float dtype.
        gold_T: (T,) int64, gold answer tokens.
        top_k: K, at most `tokenizer_size`.
        tokenizer_size: only ids below this enter the top K and the gold rank; `logsumexp` and
            `entropy` range over all V rows.
    """
    logits_TV = logits_TV.float()
    real_TV = logits_TV[:, :tokenizer_size]
    values_TK, ids_TK = real_TV.topk(top_k, dim=-1)
    peak_T1 = logits_TV.amax(dim=-1, keepdim=True)
    # H = log Σ e^d − Σ d·e^d / Σ e^d with d = logit − peak. The clamp keeps 0·(−inf) from becoming NaN.
    below_TV = (logits_TV - peak_T1).clamp_min_(-1e4)
    weight_TV = below_TV.exp()
    total_T = weight_TV.sum(dim=-1)
    logsumexp_T = peak_T1[:, 0] + total_T.log()
    entropy_T = total_T.log() - torch.linalg.vecdot(weight_TV, below_TV) / total_T
    gold_logit_T = logits_TV.gather(1, gold_T[:, None])[:, 0]
    gold_rank_T = (real_TV > gold_logit_T[:, None]).sum(dim=-1)
    return TeacherRows(
        token_ids=ids_TK.to(torch.int32).cpu().numpy(),
        logits=values_TK.cpu().numpy(),
        logsumexp=logsumexp_T.cpu().numpy(),
        entropy=entropy_T.cpu().numpy(),
        gold_logit=gold_logit_T.cpu().numpy(),
        gold_rank=gold_rank_T.to(torch.int32).cpu().numpy(),
    )


def weights_hash(model: ModelConfig) -> str:
    """SHA-256 over the model's weight files and configuration, names included.

    Raises:
        ConfigError: no weight files where the model was loaded from.
    """
    folder = Path(model.name).expanduser()
    if not folder.is_dir():
        folder = Path(huggingface_hub.snapshot_download(model.name, revision=model.revision, local_files_only=True))
    files = sorted(p for p in folder.iterdir() if p.suffix in (".safetensors", ".bin") or p.name == "config.json")
    if not any(path.suffix != ".json" for path in files):
        raise ConfigError(f"model.name: no weight files in {folder}")
    digest = hashlib.sha256()
    for path in files:
        digest.update(path.name.encode())
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()
