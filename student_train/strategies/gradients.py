"""Gradients of the *whole* optimizer step, for strategies that compare them.

They use `torch.autograd.grad`, which leaves DDP's own averaging alone, and sum over ranks themselves; sharded
parameters (FSDP, ZeRO) have no such gradients.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from accelerate import Accelerator

from logitbank.configs.schema import ConfigError

DOT_PIECE = 1 << 20  # elements whose products are held at once

Gradients = list[torch.Tensor]


def named_subset(student: torch.nn.Module, pattern: str | None) -> list[torch.nn.Parameter]:
    """Trainable parameters whose name matches a regular expression anywhere; all without one.

    Raises:
        ConfigError: a pattern that is none, or that no trainable parameter matches.
    """
    named = [(name, p) for name, p in student.named_parameters() if p.requires_grad]
    if pattern is None:
        return [p for _, p in named]
    try:
        chosen = [p for name, p in named if re.search(pattern, name)]
    except re.error as error:
        raise ConfigError(
            f"distillation.conflict_parameters: {pattern!r} is not a valid regular expression: {error}"
        ) from None
    if not chosen:
        raise ConfigError(
            f"distillation.conflict_parameters: {pattern!r} matches no trainable parameter; their names look like "
            f"{named[0][0]}"
        )
    return chosen


def zeros_like(parameters: Sequence[torch.nn.Parameter]) -> Gradients:
    """A gradient of zero for every parameter."""
    return [torch.zeros_like(parameter) for parameter in parameters]


def accumulate(
    into: Gradients, loss: torch.Tensor, parameters: Sequence[torch.nn.Parameter], *, retain_graph: bool = False
) -> None:
    """Add the gradient of a loss; no parameter's own gradient is touched."""
    gradients = torch.autograd.grad(loss, list(parameters), retain_graph=retain_graph, allow_unused=True)
    for total, gradient in zip(into, gradients, strict=True):
        if gradient is not None:
            total += gradient


def sum_over_ranks(accelerator: Accelerator, gradients: Gradients) -> None:
    """Replace gradients of this rank's micro-batches by those of the whole step."""
    if accelerator.num_processes > 1:
        for gradient in gradients:
            torch.distributed.all_reduce(gradient)


def cosine_between(left: Gradients, right: Gradients) -> float:
    """Cosine of the angle between two lists of tensors taken as one vector each; 0 where either is zero."""
    product = (dot(left, left) * dot(right, right)) ** 0.5
    return float(dot(left, right) / product) if product > 0 else 0.0


def dot(left: Gradients, right: Gradients) -> torch.Tensor:
    """Σ of products, float64: products rounded to float32, sums not, so the error is below 2⁻²⁴ Σ|product| anywhere.

    A float32 dot product adds in an order of its processor's choosing and may lose more; float64 copies of the
    gradients would cost no less time and twice the memory.
    """
    sums = [
        (a * b).sum(dtype=torch.float64)
        for x, y in zip(left, right, strict=True)
        for a, b in zip(x.flatten().split(DOT_PIECE), y.flatten().split(DOT_PIECE), strict=True)
    ]
    return torch.stack(sums).sum()
