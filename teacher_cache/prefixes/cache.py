"""Keys and values of a prompt prefix, computed once and read by every batch that begins with it.

transformers' own cache grows with each forward pass and holds a copy per sequence. The layers here
stay as they are: each call sees the prefix, repeated for the batch, followed by its own tokens, and
nothing is kept. So a prefix costs its tokens once, and only one layer is ever repeated at a time.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

from logitbank.configs.schema import ConfigError

PREFIX_TOKENS = 32_768  # tokens of prefixes kept; the longest unused go first


class FrozenLayer(DynamicLayer):
    """The prefix of a layer with full attention."""

    def __init__(self, filled: DynamicLayer) -> None:
        super().__init__()
        _take(self, filled)

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Prefix and new states, (B, heads, prefix + new, width) each; keeps neither."""
        return _append(self, key_states, value_states)


class FrozenSlidingWindowLayer(DynamicSlidingWindowLayer):
    """The prefix of a layer with a sliding window: its last `sliding_window - 1` tokens."""

    def __init__(self, filled: DynamicSlidingWindowLayer) -> None:
        super().__init__(sliding_window=filled.sliding_window)
        self.cumulative_length = filled.cumulative_length
        _take(self, filled)

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See `FrozenLayer.update`; the model's mask hides what is outside each token's window."""
        return _append(self, key_states, value_states)


def _take(layer: DynamicLayer, filled: DynamicLayer) -> None:
    layer.keys, layer.values = filled.keys, filled.values
    layer.dtype, layer.device = filled.dtype, filled.device
    layer.is_initialized = True


def _append(
    layer: DynamicLayer, key_states: torch.Tensor, value_states: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    batch = key_states.shape[0]
    assert layer.keys is not None
    assert layer.values is not None
    keys = torch.cat([layer.keys.expand(batch, -1, -1, -1), key_states], dim=-2)
    return keys, torch.cat([layer.values.expand(batch, -1, -1, -1), value_states], dim=-2)


class PrefixCache:
    """The prefixes of one model that were used last.

    Args:
        model: a causal language model of transformers.
        name: what to call it in errors.
        device: where its inputs go.

    Raises:
        ConfigError: a model whose state is more than keys and values per token.
    """

    def __init__(self, model: Any, name: str, device: torch.device) -> None:
        self._model, self._name, self._device = model, name, device
        self._kept: OrderedDict[bytes, Cache] = OrderedDict()
        self._check(DynamicCache(config=model.config), filled=False)

    def get(self, prefix_ids: NDArray[np.int32]) -> Cache:
        """The frozen cache of a prefix; a function of its ids alone, whether or not it was kept."""
        key = prefix_ids.tobytes()
        if key not in self._kept:
            self._kept[key] = self._compute(prefix_ids)
            # The new one always stays, however long it is.
            while len(self._kept) > 1 and sum(map(len, self._kept)) > PREFIX_TOKENS * prefix_ids.itemsize:
                self._kept.popitem(last=False)
        self._kept.move_to_end(key)
        return self._kept[key]

    def clear(self) -> None:
        """Forget all prefixes, because memory ran out."""
        self._kept.clear()

    def _compute(self, prefix_ids: NDArray[np.int32]) -> Cache:
        cache = DynamicCache(config=self._model.config)
        input_ids_1L = torch.from_numpy(prefix_ids.astype(np.int64))[None].to(self._device)
        self._model(input_ids=input_ids_1L, past_key_values=cache, use_cache=True, logits_to_keep=1)
        self._check(cache, filled=True)
        frozen: list[Any] = [
            FrozenSlidingWindowLayer(layer) if isinstance(layer, DynamicSlidingWindowLayer) else FrozenLayer(layer)
            for layer in cache.layers
            if isinstance(layer, DynamicLayer)
        ]
        return Cache(layers=frozen)

    def _check(self, cache: DynamicCache, *, filled: bool) -> None:
        for layer in cache.layers:
            plain = type(layer) in (DynamicLayer, DynamicSlidingWindowLayer)
            if not plain or (filled and isinstance(layer, CacheLayerMixin) and not layer.is_initialized):
                raise ConfigError(
                    f"teacher.prefix_reuse: {self._name} caches more than keys and values per token "
                    f"({type(layer).__name__}); set teacher.prefix_reuse=false"
                )
