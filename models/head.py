"""What stands between the last hidden states of a causal language model and its logits.

Most architectures compute `logits = transform(lm_head(backbone(ids)))`, the transform being nothing, a soft cap
(Gemma) or a scale (Cohere, Granite, Falcon-H1). Where that is so, logits can be computed for few positions at a time.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

Transform = Callable[[torch.Tensor], torch.Tensor]


def find_head(lm: Any) -> Transform | None:
    """What the model does to the output of its `lm_head`, or None where its logits are not of that form.

    The model is asked, not its class name: one forward pass over four tokens in which a hook replaces
    the head's output by a ramp shows the transform itself, and the head's input shows whether the
    backbone's last hidden state is all there is before it. The configuration only names the candidates.
    """
    head, backbone = lm.get_output_embeddings(), backbone_of(lm)
    if head is None or backbone is None or backbone is lm:
        return None
    ids_BL = torch.arange(1, 5, device=next(lm.parameters()).device)[None]
    seen: list[torch.Tensor] = []
    ramp: list[torch.Tensor] = []

    def replace_output(_: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
        seen.append(inputs[0])
        ramp.append(torch.linspace(-80, 80, output.shape[-1]).to(output).expand_as(output))
        return ramp[-1]

    with torch.no_grad(), evaluating(lm):
        hook = head.register_forward_hook(replace_output)
        try:
            logits = lm(input_ids=ids_BL, use_cache=False).logits
        finally:
            hook.remove()
        hidden = backbone(input_ids=ids_BL, use_cache=False).last_hidden_state
    if len(seen) != 1 or seen[0].shape != hidden.shape or logits.shape != ramp[0].shape:
        return None
    if not torch.allclose(seen[0].float(), hidden.float(), rtol=1e-2, atol=1e-2):
        return None
    tolerance = 1e-5 if logits.dtype == torch.float32 else 1e-2
    for transform in _candidates(lm.config.get_text_config()):
        if torch.allclose(transform(ramp[0]).float(), logits.float(), rtol=tolerance, atol=tolerance):
            return transform
    return None


def _candidates(config: Any) -> list[Transform]:
    """Transforms that the configuration speaks of; the first is none at all."""
    candidates: list[Transform] = [lambda logits: logits]
    if cap := getattr(config, "final_logit_softcapping", None):
        candidates.append(lambda logits: cap * torch.tanh(logits / cap))
    for name in ("logit_scale", "lm_head_multiplier"):
        if scale := getattr(config, name, None):
            candidates.append(lambda logits, scale=scale: logits * scale)  # type: ignore[misc]
    if divisor := getattr(config, "logits_scaling", None):
        candidates.append(lambda logits: logits / divisor)
    return candidates


def causal_lm(model: Any) -> Any:
    """The transformers model inside a PEFT wrapper, or the model itself."""
    return model.get_base_model() if hasattr(model, "peft_config") else model


def backbone_of(lm: Any) -> Any:
    """What computes a transformers model's last hidden states, or None where it does not name it."""
    return getattr(lm, lm.base_model_prefix, None) if lm.base_model_prefix else None


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)
