"""The one place where Hugging Face tokenizers and models are opened."""

from __future__ import annotations

import importlib.util
import logging
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

from logitbank.configs.schema import ConfigError, ModelConfig
from logitbank.models.precision import has_fast_bfloat16, opened_dtype

logger = logging.getLogger(__name__)

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def load_tokenizer(model: ModelConfig) -> Any:
    """Open the tokenizer of a model.

    Raises:
        ConfigError: no such directory or hub repository, or no tokenizer in it.
    """
    return _open(AutoTokenizer, model)


def token_text(model: str) -> Callable[[int], str]:
    """Text of single token ids, for people to read; `<id>`, with a warning, where the tokenizer cannot be opened."""
    try:
        tokenizer = load_tokenizer(ModelConfig(name=model))
    except ConfigError as error:
        logger.warning("warning: %s; token ids are shown instead", error)
        return lambda token: f"<{token}>"
    return lambda token: str(tokenizer.decode([token]))


def load_causal_lm(
    model: ModelConfig,
    *,
    dtype: str | None = None,
    device: str | torch.device = "cpu",
    load_in_4bit: bool = False,
    load_in_8bit: bool = False,
    device_map: str | None = None,
    stay_on_host: bool = False,
) -> Any:
    """Open a causal language model in evaluation mode.

    Args:
        model: what to open.
        dtype: one of `DTYPES` or "auto", see `opened_dtype`; default `model.dtype`.
        device: where to put it.
        load_in_4bit: quantise linear layers to NF4 (QLoRA, arXiv:2305.14314); they compute in bfloat16, or in
            float32 on a CPU without fast bfloat16. Needs bitsandbytes.
        load_in_8bit: quantise them to 8 bits (arXiv:2208.07339) instead; needs the same.
        device_map: spread the layers over all devices, as accelerate does; replaces `device`.
        stay_on_host: leave the weights in host memory; who shards them moves them to `device`.

    Raises:
        ConfigError: no such directory or hub repository, or no model in it.
    """
    return _load(
        AutoModelForCausalLM,
        model,
        dtype=dtype,
        device=device,
        load_in_4bit=load_in_4bit,
        load_in_8bit=load_in_8bit,
        device_map=device_map,
        stay_on_host=stay_on_host,
    )


def load_backbone(
    model: ModelConfig,
    *,
    dtype: str | None = None,
    device: str | torch.device = "cpu",
    load_in_4bit: bool = False,
    load_in_8bit: bool = False,
    stay_on_host: bool = False,
) -> Any:
    """Open a model without any head, decoder or encoder; arguments and errors as `load_causal_lm`."""
    return _load(
        AutoModel,
        model,
        dtype=dtype,
        device=device,
        load_in_4bit=load_in_4bit,
        load_in_8bit=load_in_8bit,
        device_map=None,
        stay_on_host=stay_on_host,
    )


def _load(
    auto: Any,
    model: ModelConfig,
    *,
    dtype: str | None,
    device: str | torch.device,
    load_in_4bit: bool,
    load_in_8bit: bool,
    device_map: str | None,
    stay_on_host: bool,
) -> Any:
    key = "model.dtype" if dtype is None else "teacher.dtype"  # a student asks for float32 at most
    name = opened_dtype(key, dtype or model.dtype, torch.device(device))
    options: dict[str, Any] = {"dtype": DTYPES.get(name, "auto")}
    if model.attn_implementation is not None:
        options["attn_implementation"] = model.attn_implementation
    if load_in_4bit:
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16 if has_fast_bfloat16(torch.device(device)) else torch.float32,
        )
    elif load_in_8bit:
        options["quantization_config"] = BitsAndBytesConfig(load_in_8bit=True)
    quantised = "quantization_config" in options or hasattr(model_config(model), "quantization_config")
    if device_map is not None or quantised:  # what is quantised is put where it goes when it is loaded
        options["device_map"] = device_map or {"": torch.device(device)}
        return _without_packing(_open(auto, model, **options)).eval()
    opened = _open(auto, model, **options).eval()
    return opened if stay_on_host else opened.to(device)


def _without_packing(model: Any) -> Any:
    """Keep bitsandbytes from packing 4-bit weights at the first forward pass without gradients.

    It does so on CPUs with AVX512-BF16, for good, and packed layers pass no gradient on: an adapter below them would
    learn nothing from then on.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    return model


def require_quantization(key: str) -> None:
    """Check that weights can be quantised here; CPUs can as well.

    Args:
        key: the configuration key that asks for it.

    Raises:
        ConfigError: bitsandbytes is not installed.
    """
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ConfigError(
            f"{key}: the package bitsandbytes is not installed; pip install 'logitbank[quantization]', or set this "
            "key to false"
        )


def lm_head_rows(model: ModelConfig) -> int:
    """Rows of the model's `lm_head`, padding included, read from its configuration alone."""
    return int(text_config(model).vocab_size)


def context_tokens(model: ModelConfig) -> int | None:
    """Most tokens that the model reads at once, as its configuration says; None if it names no such limit."""
    limit = getattr(text_config(model), "max_position_embeddings", None)
    return None if limit is None else int(limit)


def text_config(model: ModelConfig) -> Any:
    """The configuration of the model's language part, without its weights; ConfigError if there is none."""
    return model_config(model).get_text_config()


def model_config(model: ModelConfig) -> Any:
    """The model's configuration, without its weights; ConfigError if there is none."""
    return _open(AutoConfig, model)


def stored_dtype(model: ModelConfig) -> str:
    """The number format that a model's weights are stored in, as its configuration says; float32 where it does not."""
    dtype = model_config(model).dtype
    return "float32" if dtype is None else str(dtype).removeprefix("torch.")


def is_causal_lm(model: ModelConfig) -> bool:
    """Whether a model is stored with the head of a language model."""
    return any(name.endswith("ForCausalLM") for name in model_config(model).architectures or [])


def open_whole(model: ModelConfig, **options: Any) -> Any:
    """Open all that is stored of a model: a language model with its head, any other without one.

    Arguments and errors as `load_causal_lm`.
    """
    return (load_causal_lm if is_causal_lm(model) else load_backbone)(model, **options)


def _open(auto: Any, model: ModelConfig, **options: Any) -> Any:
    looks_local = model.name.startswith((".", "/", "~")) or Path(model.name).exists()
    path = str(Path(model.name).expanduser()) if looks_local else model.name
    if looks_local and not Path(path).is_dir():
        raise ConfigError(f"model.name: no directory {shlex.quote(model.name)}; give a directory or a hub id")
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()  # what it warns of is for people who call it themselves
    try:
        return auto.from_pretrained(
            path,
            revision=model.revision or "main",
            trust_remote_code=model.trust_remote_code,
            local_files_only=looks_local,
            **options,
        )
    except (OSError, ValueError, ImportError) as error:  # an import that a quantised checkpoint needs
        lacks_all = looks_local and not any(Path(path).glob("*.json"))  # no model's directory, whatever it lacks first
        reason = "no config.json or tokenizer in it" if lacks_all else str(error).strip().splitlines()[0].rstrip(": ")
        raise ConfigError(f"model.name: {shlex.quote(model.name)} cannot be opened: {reason}") from error
