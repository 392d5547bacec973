"""GPTQ (arXiv:2210.17323) by llm-compressor, in an environment of its own: it needs an older transformers."""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import io
import logging
import os
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader

from logitbank.configs.schema import ConfigError, ModelConfig
from logitbank.models.huggingface import is_causal_lm, open_whole
from logitbank.preference import PackedPair
from logitbank.student_train.export.quantization import Quantization

POOLER = "re:.*pooler.*"  # of encoders: no pair passes through it


class RefusedError(ConfigError):
    """llm-compressor cannot quantise this model, or is not here; says why."""


def require_llm_compressor() -> None:
    """Check that llm-compressor is installed in this environment.

    Raises:
        RefusedError: says where it is, and what works here.
    """
    if importlib.util.find_spec("llmcompressor") is None:
        raise RefusedError(
            "--quantize gptq: llm-compressor is not installed here because it needs an older transformers; run make "
            "install-quantize, then the same command by .venv-quantize/bin/export-model, or use --quantize int8, "
            "which works here"
        )


def quantize_gptq(
    model: ModelConfig, quantization: Quantization, packed: Sequence[PackedPair], target: Path
) -> dict[str, Any]:
    """Write a model whose linear layers have 4 or 8 bits, in the format of compressed-tensors.

    Groups of weights along a row share a scale; the layers are rounded one after another, each so that its outputs on
    the rows change least. The head of a language model stays as it is.

    Args:
        model: a directory of whole weights.
        quantization: bits and group size.
        packed: rows that calibrate.
        target: directory, which the model's files are written into.

    Returns:
        What `export.json` says of the program.

    Raises:
        RefusedError: llm-compressor cannot follow the model's code.
    """
    os.environ.setdefault("LLM_COMPRESSOR_LOG_LEVEL", "ERROR")
    logging.getLogger("torch.fx").setLevel(logging.ERROR)
    from llmcompressor import oneshot  # optional, and slow
    from llmcompressor.modifiers.gptq import GPTQModifier

    whole = open_whole(model, dtype="float32")
    head = whole.get_output_embeddings()
    kept = [name for name, module in whole.named_modules() if module is head]
    weights = {
        "num_bits": quantization.bits,
        "type": "int",
        "symmetric": True,
        "strategy": "group",
        "group_size": quantization.group_size,
    }
    recipe = GPTQModifier(
        config_groups={"group_0": {"targets": ["Linear"], "weights": weights}}, ignore=[*kept, POOLER]
    )
    try:
        with _quiet():
            oneshot(
                model=whole,
                recipe=recipe,
                dataset=_rows(packed, logits=is_causal_lm(model), cached=hasattr(whole.config, "use_cache")),
                num_calibration_samples=len(packed),
                max_seq_length=max(len(pair.ids) for pair in packed),
                shuffle_calibration_samples=False,
            )
    except (MemoryError, torch.OutOfMemoryError, OSError):
        raise
    except Exception as error:  # it traces the model's own code, which may do anything
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise RefusedError(
            f"--quantize gptq: llm-compressor cannot quantise {type(whole).__name__} ({reason}); use "
            "--quantize int8, or add --fallback int8"
        ) from error
    whole.save_pretrained(target, save_compressed=True)
    (target / "recipe.yaml").unlink(missing_ok=True)  # `config.json` says the same
    return {"program": f"llmcompressor {importlib.metadata.version('llmcompressor')}"}


def _quiet() -> AbstractContextManager[Any]:
    """Without a terminal, no progress bars."""
    return contextlib.nullcontext() if sys.stderr.isatty() else contextlib.redirect_stderr(io.StringIO())


def _rows(packed: Sequence[PackedPair], *, logits: bool, cached: bool) -> DataLoader[Any]:
    """One pair at a time, so that no row is padded; logits of the last token alone, no cache."""
    options = ({"logits_to_keep": 1} if logits else {}) | ({"use_cache": False} if cached else {})

    def inputs(pairs: list[PackedPair]) -> dict[str, Any]:
        ids = torch.from_numpy(pairs[0].ids).long()[None]
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids), **options}

    return DataLoader(list(packed), batch_size=1, collate_fn=inputs)  # type: ignore[arg-type]
