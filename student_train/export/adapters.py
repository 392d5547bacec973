"""LoRA adapters: averaged exactly, and merged into their base.

Shape letters: O outputs, I inputs of a layer, R rank.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import peft
from safetensors import SafetensorError
from torch import nn

from logitbank.configs.schema import ConfigError
from logitbank.models.huggingface import is_causal_lm, open_whole
from logitbank.student_train.export.sources import Source

MEAN = "mean"  # the name of the adapter that is the others' mean


def merged_model(sources: Sequence[Source]) -> Any:
    """The base with the mean of its adapters merged into it: W + mean of ΔW, in float32 on the CPU.

    A language model keeps its head where the adapters were trained on its backbone alone.

    Args:
        sources: at least one adapter, all of one base.

    Raises:
        ConfigError: no such base, or adapters that do not fit it.
    """
    base = sources[0].base
    causal = is_causal_lm(base)
    on_backbone = sources[0].has_own_head
    if not causal and not on_backbone:
        raise ConfigError(
            f"--base: {base.name} is not a causal language model, but {sources[0].path} was trained on one"
        )
    model = open_whole(base, dtype="float32")
    if causal:
        _untie(model, sources)
    adapted = put_adapters(model.base_model if causal and on_backbone else model, sources)
    mean = average_adapters(adapted, adapter_names(sources))
    adapted.merge_and_unload(adapter_names=[mean])
    return model


def put_adapters(model: Any, sources: Sequence[Source]) -> Any:
    """A PEFT model with the adapters `source0`, `source1` …, none of them merged.

    Raises:
        ConfigError: an adapter that does not fit the model.
    """
    adapted: Any = None
    for source, name in zip(sources, adapter_names(sources), strict=True):
        try:
            if adapted is None:
                adapted = peft.PeftModel(model, source.adapter, adapter_name=name)
            result = adapted.load_adapter(str(source.path), adapter_name=name)
        except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
            raise _misfit(source, str(error).strip().splitlines()[0].rstrip(": ") or type(error).__name__) from error
        if lacking := [*result.missing_keys, *result.unexpected_keys]:  # PEFT would leave these layers as they are
            raise _misfit(source, f"{lacking[0]} is in only one of them")
    return adapted


def adapter_names(sources: Sequence[Source]) -> list[str]:
    """What `put_adapters` calls them. No name is part of a layer's: PEFT looks for it in names of weights."""
    return [f"source{number}" for number in range(len(sources))]


def average_adapters(adapted: Any, names: Sequence[str]) -> str:
    """Add the adapter whose ΔW is the mean of the others' ΔW; its name.

    ΔW is the product of two matrices, so the means of A and of B do not give it. A of all adapters side by side, each
    times its scale and 1/n, and B likewise, do: [B₀ B₁ …] (O, ΣR) · [A₀/n; A₁/n; …] (ΣR, I) = Σ Bᵢ Aᵢ / n. The ranks,
    scales and layers of the adapters may differ; one without a layer changes nothing there.

    Args:
        adapted: a PEFT model.
        names: of its adapters; a single one is its own mean.
    """
    if len(names) == 1:
        return names[0]
    shares = [1 / len(names)] * len(names)
    adapted.add_weighted_adapter(list(names), shares, adapter_name=MEAN, combination_type="cat")
    for module in adapted.modules():  # the scales are inside A: rank-stabilised adapters would be scaled again
        if isinstance(module, peft.tuners.lora.LoraLayer) and MEAN in module.scaling:
            module.scaling[MEAN] = 1.0
    return MEAN


def _untie(model: Any, sources: Sequence[Source]) -> None:
    """Give a tied `lm_head` weights of its own where an adapter changes the embeddings, or it, and not the other."""
    head, embeddings = model.get_output_embeddings(), model.get_input_embeddings()
    if head is None or head.weight is not embeddings.weight:
        return
    tied = [name for name, module in model.named_modules() if module is head or module is embeddings]
    if any(_targets(source.adapter, name) for source in sources for name in tied):
        head.weight = nn.Parameter(head.weight.detach().clone())
        model.config.tie_word_embeddings = False


def _targets(adapter: Any, module: str) -> bool:
    targets = adapter.target_modules
    if isinstance(targets, str):
        return re.fullmatch(targets, module) is not None
    return any(module == target or module.endswith(f".{target}") for target in targets)


def _misfit(source: Source, reason: str) -> ConfigError:
    return ConfigError(f"{source.path}: the adapter does not fit {source.base.name}: {reason}")
