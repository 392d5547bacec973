"""What is between the last hidden states of a causal language model and its logits.

Most architectures compute `logits = transform(lm_head(backbone(ids)))`, the transform being nothing, a soft cap
(Gemma) or a scale (Cohere, Granite, Falcon-H1). Where that is so, logits can be computed for few positions at a time.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

Transform = Callable[[torch.Tensor], torch.Tensor]


def unchanged(logits: torch.Tensor) -> torch.Tensor:
    """The transform of most architectures: none."""
    return logits


@dataclass(frozen=True)
class Head:
    """What makes logits (T, V) of last hidden states (T, D).

    Attributes:
        project: hidden states to the output of the `lm_head`.
        transform: what the model does to that output.
        weight_VD: set where `project` is nothing but the product with it, and the bias: then some of the columns can be
            computed without the others.
        bias_V: what is added to the product.
    """

    project: Callable[[torch.Tensor], torch.Tensor]
    transform: Transform = unchanged
    weight_VD: torch.Tensor | None = None
    bias_V: torch.Tensor | None = None

    @classmethod
    def of_weight(
        cls, weight_VD: torch.Tensor, bias_V: torch.Tensor | None = None, transform: Transform = unchanged
    ) -> Head:
        """A head that is a matrix."""
        return cls(lambda hidden: nn.functional.linear(hidden, weight_VD, bias_V), transform, weight_VD, bias_V)

    def logits(self, hidden_TD: torch.Tensor) -> torch.Tensor:
        """(T, V), of the dtype that the model itself would give."""
        return self.transform(self.project(hidden_TD))

    def columns(self, hidden_TD: torch.Tensor, start: int, out_TC: torch.Tensor) -> None:
        """Write columns `start` to `start + C` of the logits into `out_TC` (float32); `weight_VD` must be set."""
        assert self.weight_VD is not None
        weight_CD = self.weight_VD[start : start + out_TC.shape[1]]
        bias_C = None if self.bias_V is None else self.bias_V[start : start + out_TC.shape[1]]
        if self.transform is unchanged and bias_C is None and weight_CD.dtype == out_TC.dtype:
            torch.mm(hidden_TD, weight_CD.t(), out=out_TC)
        else:
            out_TC.copy_(self.transform(nn.functional.linear(hidden_TD, weight_CD, bias_C)))


def open_head(lm: Any) -> Head | None:
    """The head of a transformers model, or None if `find_head` finds none."""
    transform = find_head(lm)
    if transform is None:
        return None
    module = lm.get_output_embeddings()
    if _is_plain(module):
        return Head(module, transform, module.weight, module.bias)
    return Head(module, transform)


def _is_plain(module: nn.Module) -> bool:
    """Whether a layer is a matrix in memory: not quantised, not adapted, and without hooks that see its calls."""
    hooked = module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module)  # the last: accelerate's
    return type(module) is nn.Linear and not hooked and module.weight.is_floating_point() and not module.weight.is_meta


def find_head(lm: Any) -> Transform | None:
    """What the model does to the output of its `lm_head`, or None if its logits are not of that form.

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
    candidates: list[Transform] = [unchanged]
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
    """What computes a transformers model's last hidden states, or None if it does not name it."""
    return getattr(lm, lm.base_model_prefix, None) if lm.base_model_prefix else None


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)
