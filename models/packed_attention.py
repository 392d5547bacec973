"""Several sequences in one row of a causal language model, each attending to itself alone.

Where the model's attention is PyTorch's (`sdpa`) or plain (`eager`), it is run once for each sequence of the row: no
mask of all tokens by all tokens is made or held, and no product between sequences is computed. Flash attention does the
same in one kernel, told where sequences begin; flex attention makes a block mask from the positions.

Shapes: B rows (one, if it is packed), H heads, L tokens of a row, D head size.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from logitbank.errors import ConfigError
from logitbank.models.head import backbone_of, evaluating

KEY = "training.packing"
PER_SEQUENCE = {"sdpa": "sequence_by_sequence_sdpa", "eager": "sequence_by_sequence_eager"}
LAYER_TYPES = {"full_attention", "sliding_attention"}  # others carry a state, or cut a row into chunks of their own
ROPE_BY_LENGTH = {"dynamic", "longrope"}  # these turn positions by the longest sequence of a forward pass
PROBE = (5, 3, 6)  # tokens of the sequences that a model is tried on
TOLERANCES = {torch.float64: 1e-6, torch.float32: 1e-3}  # relative error of a hidden state; 5e-2 in half precision


def keep_apart(lm: Any) -> None:
    """Make a model keep the sequences of a row apart, and see that it does.

    The model is asked, not its class name: hidden states of three short sequences in one row must be those of each
    on its own.

    Args:
        lm: a causal language model of transformers, without PEFT's wrapper; changed in place.

    Raises:
        ConfigError: a model with a state beside attention (Mamba, hybrids), or in which tokens see other sequences for
            another reason.
    """
    config = lm.config.get_text_config()
    others = sorted(set(getattr(config, "layer_types", None) or ()) - LAYER_TYPES)
    if others:
        raise _refusal(lm, f"has layers of {', '.join(others)}")
    ropes = getattr(config, "rope_parameters", None) or {}
    kinds = {str(rope.get("rope_type")) for rope in (ropes, *ropes.values()) if isinstance(rope, dict)}
    if kinds & ROPE_BY_LENGTH:
        names = ", ".join(sorted(kinds & ROPE_BY_LENGTH))
        raise _refusal(lm, f"scales rotary positions by the length of the longest sequence ({names})")
    own = lm.config._attn_implementation
    if own in PER_SEQUENCE:
        ALL_ATTENTION_FUNCTIONS.register(PER_SEQUENCE[own], partial(_sequence_by_sequence, own))
        lm.set_attn_implementation(PER_SEQUENCE[own])
    if not _keeps_apart(lm):
        raise _refusal(lm, "lets packed sequences attend to each other")


def packed_inputs(lm: Any, lengths: Sequence[int], device: torch.device) -> dict[str, Any]:
    """What the model is given beside the ids of a packed row: positions that restart, and where sequences begin.

    Args:
        lm: prepared by `keep_apart`.
        lengths: tokens of each sequence of the row.
        device: of the ids.
    """
    position_ids = torch.cat([torch.arange(length) for length in lengths])[None].to(device, non_blocking=True)
    inputs: dict[str, Any] = {"position_ids": position_ids}
    implementation = lm.config._attn_implementation
    if implementation in PER_SEQUENCE.values():
        inputs["packed_lengths"] = tuple(lengths)
    elif "flash" in implementation:
        ends = torch.tensor([0, *lengths]).cumsum(0).to(torch.int32).to(device, non_blocking=True)
        inputs |= {"cu_seq_lens_q": ends, "cu_seq_lens_k": ends}
        inputs |= {"max_length_q": max(lengths), "max_length_k": max(lengths)}
    return inputs


def _sequence_by_sequence(
    own: str,
    module: torch.nn.Module,
    query_BHLD: torch.Tensor,
    key_BHLD: torch.Tensor,
    value_BHLD: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    packed_lengths: tuple[int, ...] | None = None,
    sliding_window: int | None = None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """Attention of each sequence by the model's own function, as transformers calls it; (B, L, H, D).

    For an attention function that transformers does not know, its models make no mask.

    Raises:
        ValueError: a model that makes one in its own way.
    """
    if attention_mask is not None:
        raise ValueError("attention_mask: expected none")
    eager: Any = getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)  # a model's own
    attend = ALL_ATTENTION_FUNCTIONS.get_interface(own, eager)
    ends = torch.tensor([0, *(packed_lengths or (query_BHLD.shape[2],))]).cumsum(0).tolist()
    parts = []
    for start, end in pairwise(ends):
        rows = [tensor[:, :, start:end] for tensor in (query_BHLD, key_BHLD, value_BHLD)]
        mask = _mask(own, end - start, sliding_window, query_BHLD)
        parts.append(attend(module, *rows, mask, sliding_window=sliding_window, **options)[0])
    return torch.cat(parts, dim=1), None


def _mask(own: str, length: int, window: int | None, like: torch.Tensor) -> torch.Tensor | None:
    """What tokens of one sequence see, (1, 1, L, L), as the function takes it; None if it is causal by itself."""
    if own == "sdpa" and (window is None or window >= length):
        return None
    back = torch.arange(length, device=like.device)
    back = back[:, None] - back[None, :]
    seen = back >= 0 if window is None else (back >= 0) & (back < window)
    if own == "sdpa":
        return seen[None, None]
    least = torch.finfo(like.dtype).min
    return torch.zeros_like(seen, dtype=like.dtype).masked_fill_(~seen, least)[None, None]


def _keeps_apart(lm: Any) -> bool:
    """Whether hidden states of sequences in one row are those of each on its own."""
    backbone = backbone_of(lm) or lm
    device = next(lm.parameters()).device
    rows = lm.get_input_embeddings().weight.shape[0]
    ids = (torch.arange(sum(PROBE)) * 7 + 1).remainder(rows).to(device)[None]
    with torch.no_grad(), evaluating(lm):
        try:
            packed = _hidden(backbone(input_ids=ids, use_cache=False, **packed_inputs(lm, PROBE, device)))[0]
        except (TypeError, ValueError, AttributeError):  # takes no such arguments
            return False
        alone = [_hidden(backbone(input_ids=part, use_cache=False))[0] for part in ids.split(PROBE, dim=1)]
    expected = torch.cat(alone)
    error = (packed - expected).double().norm(dim=-1) / expected.double().norm(dim=-1)
    return bool(error.max() <= TOLERANCES.get(expected.dtype, 5e-2))


def _hidden(output: Any) -> torch.Tensor:
    hidden: torch.Tensor = output[0]
    return hidden


def _refusal(lm: Any, reason: str) -> ConfigError:
    return ConfigError(
        f"{KEY}: {type(lm).__name__} {reason}; expected a model whose only memory is attention; set {KEY}=false"
    )
