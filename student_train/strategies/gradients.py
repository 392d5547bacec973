"""Strategies that look at gradients: `gradient_conflict` and `meta`.

Both need ∇CE and ∇KD of the *whole* optimizer step, over all ranks and accumulation steps. They use
`torch.autograd.grad`, which leaves DDP's own averaging alone, and sum over ranks themselves; sharded
parameters (FSDP, ZeRO) have no such gradients, so those are refused.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from accelerate import Accelerator

from logitbank.configs.schema import ConfigError
from logitbank.student_train.data import Batch
from logitbank.student_train.losses.base import StudentLogits
from logitbank.student_train.losses.step_loss import StepLoss, cross_entropy
from logitbank.student_train.sharding import is_sharded

DOT_PIECE = 1 << 20  # elements whose products are held at once

Gradients = list[torch.Tensor]
# (batch, λ_t) -> the micro-batch's loss and its terms
Forward = Callable[[Batch, torch.Tensor], StepLoss]


def refuse_sharding(accelerator: Accelerator, strategy: str) -> None:
    """Raise `ConfigError` where parameters are sharded and the strategy compares gradients."""
    for part in ("gradient_conflict", "meta"):
        if is_sharded(accelerator) and part in strategy.split("*"):
            raise ConfigError(
                f"distillation.strategy: {part} compares whole gradients, which "
                f"{accelerator.distributed_type.value} shards; use DDP or one process, or another strategy"
            )


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
        raise ConfigError(f"distillation.conflict_parameters: {pattern!r} is no regular expression: {error}") from None
    if not chosen:
        raise ConfigError(
            f"distillation.conflict_parameters: {pattern!r} matches no trainable parameter; "
            f"one of them is called {named[0][0]}"
        )
    return chosen


def backward_apart(
    accelerator: Accelerator, student: Any, forward: Forward, batches: Sequence[Batch], lambdas: Sequence[torch.Tensor]
) -> tuple[list[StepLoss], float]:
    """Set every parameter's gradient to ∇CE + max(0, cos(∇CE, ∇KD)) · ∇KD, the cosine over all of them.

    The factor of `gradient_conflict` (after Du et al. 2018, arXiv:1812.02224: an auxiliary loss counts as
    far as its gradient points the main loss's way); ∇KD is that of Σ_t λ_t KD_t / N. Costs a second backward
    pass and a second set of gradients. Returns the micro-batches' losses and the cosine.
    """
    parameters = named_subset(student, None)
    of_ce, of_kd = _zeros(parameters), _zeros(parameters)
    losses = []
    for batch, lambda_T in zip(batches, lambdas, strict=True):
        with accelerator.no_sync(student):
            loss = forward(batch, lambda_T)
        _accumulate(of_ce, loss.ce_T.sum() / batch.step_tokens, parameters, retain_graph=True)
        _accumulate(of_kd, (lambda_T * loss.kd_T).sum() / batch.step_tokens, parameters)
        losses.append(loss.detached())
    _sum_over_ranks(accelerator, of_ce + of_kd)
    cosine = cosine_between(of_ce, of_kd)
    for parameter, ce, kd in zip(parameters, of_ce, of_kd, strict=True):
        parameter.grad = ce.add_(kd, alpha=max(0.0, cosine))
    return losses, cosine


def conflict_of_subset(
    accelerator: Accelerator,
    student: Any,
    forward: Forward,
    batches: Sequence[Batch],
    lambdas: Sequence[torch.Tensor],
    parameters: Sequence[torch.nn.Parameter],
) -> float:
    """cos(∇CE, ∇KD) over some parameters, from a forward pass of its own.

    Backward passes stop at the first of the parameters, and no gradient is kept for the others: less memory than
    `backward_apart` where all weights train, but with LoRA, whose gradients are small, the forward pass costs more
    than that saves. With dropout its masks are other ones than those of the step that follows.
    """
    of_ce, of_kd = _zeros(parameters), _zeros(parameters)
    for batch, lambda_T in zip(batches, lambdas, strict=True):
        with accelerator.no_sync(student):
            loss = forward(batch, lambda_T)
        _accumulate(of_ce, loss.ce_T.sum() / batch.step_tokens, parameters, retain_graph=True)
        _accumulate(of_kd, (lambda_T * loss.kd_T).sum() / batch.step_tokens, parameters)
    _sum_over_ranks(accelerator, of_ce + of_kd)
    return cosine_between(of_ce, of_kd)


def meta_alignment(
    accelerator: Accelerator,
    student: Any,
    forward: Forward,
    batches: Sequence[Batch],
    validation: Iterable[Batch],
    tasks: int,
) -> torch.Tensor:
    """⟨∇val, ∇KD_i⟩ for every task i of `tasks`, (tasks,) float32.

    ∇val is the gradient of the mean CE over the held-out micro-batches, which every rank runs in full; ∇KD_i
    that of the step's Σ KD_t / N over the answer tokens of task i, one backward pass for each task of
    each micro-batch. No gradient is left behind.
    """
    parameters = named_subset(student, None)
    of_validation = _zeros(parameters)
    for batch in validation:
        with accelerator.no_sync(student):
            logits = run_student(student, batch)
        _accumulate(of_validation, cross_entropy(logits).sum() / batch.step_tokens, parameters)
    alignment = torch.zeros(tasks, device=of_validation[0].device)
    for batch in batches:
        with accelerator.no_sync(student):
            loss = forward(batch, torch.zeros_like(batch.gold_T, dtype=torch.float32))
        present = batch.task_T.unique().tolist()
        for task in present:
            term = loss.kd_T[batch.task_T == task].sum() / batch.step_tokens
            of_kd = torch.autograd.grad(term, parameters, retain_graph=task != present[-1], allow_unused=True)
            pairs = zip(of_validation, of_kd, strict=True)
            alignment[task] += sum(torch.vdot(v.flatten(), g.flatten().to(v)) for v, g in pairs if g is not None)
    return accelerator.reduce(alignment, "sum")


def mean_losses(accelerator: Accelerator, forward: Forward, batches: Sequence[Batch]) -> tuple[float, float]:
    """Mean CE and KD of a step before anything was learnt, without gradients."""
    with torch.no_grad():
        losses = [forward(batch, torch.zeros(len(batch.gold_T), device=batch.gold_T.device)) for batch in batches]
    return reduced_means(accelerator, losses, batches)


def reduced_means(
    accelerator: Accelerator, losses: Sequence[StepLoss], batches: Sequence[Batch]
) -> tuple[float, float]:
    """Mean CE and KD per answer token of a whole step, over all ranks."""
    ce = torch.stack([loss.ce_T.detach().sum() for loss in losses]).sum()
    kd = torch.stack([loss.kd_T.detach().sum() for loss in losses]).sum()
    total = accelerator.reduce(torch.stack([ce, kd]).double(), "sum") / batches[0].step_tokens
    return total[0].item(), total[1].item()


def run_student(student: Any, batch: Batch, *, with_argmax: bool = False, with_rest: bool = False) -> StudentLogits:
    """The student's logits at the answer positions of a batch."""
    logits: StudentLogits = student(
        batch.input_ids_BL,
        batch.attention_mask_BL,
        batch.answer_index_T,
        batch.gold_T,
        batch.top_ids_TK,
        with_argmax=with_argmax,
        with_rest=with_rest,
    )
    return logits


def cosine_between(left: Gradients, right: Gradients) -> float:
    """Cosine of the angle between two lists of tensors taken as one vector each; 0 where either is zero."""
    product = (_dot(left, left) * _dot(right, right)) ** 0.5
    return float(_dot(left, right) / product) if product > 0 else 0.0


def _dot(left: Gradients, right: Gradients) -> torch.Tensor:
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


def _zeros(parameters: Sequence[torch.nn.Parameter]) -> Gradients:
    return [torch.zeros_like(parameter) for parameter in parameters]


def _accumulate(
    into: Gradients, loss: torch.Tensor, parameters: Sequence[torch.nn.Parameter], *, retain_graph: bool = False
) -> None:
    gradients = torch.autograd.grad(loss, list(parameters), retain_graph=retain_graph, allow_unused=True)
    for total, gradient in zip(into, gradients, strict=True):
        if gradient is not None:
            total += gradient


def _sum_over_ranks(accelerator: Accelerator, gradients: Gradients) -> None:
    if accelerator.num_processes > 1:
        for gradient in gradients:
            torch.distributed.all_reduce(gradient)
