"""`gradient_conflict`: the teacher counts as far as its gradient points the same way as the answers' own."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from logitbank.student_train.losses.step_loss import StepLoss
from logitbank.student_train.strategies.base import Backward, Setting, StepWork, Strategy
from logitbank.student_train.strategies.gradients import (
    Gradients,
    accumulate,
    cosine_between,
    named_subset,
    sum_over_ranks,
    zeros_like,
)


class GradientConflict(Strategy):
    """Multiplies λ by max(0, cos(∇CE, ∇KD)), once a step; ∇KD is that of Σ_t w_t λ_t KD_t / N (arXiv:1812.02224).

    The cosine is taken over all trainable parameters, or over those that `distillation.conflict_parameters` matches.
    """

    compares_gradients = True
    makes_gradients = True

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        pattern = setting.config.distillation.conflict_parameters
        self._subset = named_subset(setting.student, pattern) if pattern else None

    def backward(self, work: StepWork, lambdas: Sequence[torch.Tensor]) -> Backward:
        """∇CE + max(0, cosine) · ∇KD."""
        if self._subset is None:
            losses, cosine = self.backward_apart(work, lambdas)
            scale = max(0.0, cosine)
        else:
            cosine = self.cosine_of(self._subset, work, lambdas)
            scale = max(0.0, cosine)
            losses = work.backward([lambda_T * scale for lambda_T in lambdas])
        return Backward(losses, scale, {"cosine": cosine})

    def backward_apart(self, work: StepWork, lambdas: Sequence[torch.Tensor]) -> tuple[list[StepLoss], float]:
        """Set every parameter's gradient to ∇CE + max(0, cosine) · ∇KD, the cosine over all of them.

        Costs a second backward pass and a second set of gradients. Returns the micro-batches' losses and the cosine.
        """
        parameters = named_subset(self.setting.student, None)
        of_ce, of_kd, losses = self._gradients(parameters, work, lambdas, logged=True)
        cosine = cosine_between(of_ce, of_kd)
        for parameter, ce, kd in zip(parameters, of_ce, of_kd, strict=True):
            parameter.grad = ce.add_(kd, alpha=max(0.0, cosine))
        return losses, cosine

    def cosine_of(
        self, parameters: Sequence[torch.nn.Parameter], work: StepWork, lambdas: Sequence[torch.Tensor]
    ) -> float:
        """cos(∇CE, ∇KD) over some parameters, from a forward pass of its own.

        Backward passes stop at the first of the parameters, and no gradient is kept for the others: less memory than
        `backward_apart` where all weights train, but with LoRA, whose gradients are small, the forward pass costs more
        than that saves. With dropout its masks are other ones than those of the step that follows.
        """
        of_ce, of_kd, _ = self._gradients(parameters, work, lambdas, logged=False)
        return cosine_between(of_ce, of_kd)

    def _gradients(
        self,
        parameters: Sequence[torch.nn.Parameter],
        work: StepWork,
        lambdas: Sequence[torch.Tensor],
        *,
        logged: bool,
    ) -> tuple[Gradients, Gradients, list[StepLoss]]:
        """∇CE and ∇KD of the whole step, over all ranks, and this rank's losses."""
        accelerator, student = self.setting.accelerator, self.setting.student
        of_ce, of_kd = zeros_like(parameters), zeros_like(parameters)
        losses = []
        for batch, lambda_T in zip(work.batches, lambdas, strict=True):
            with accelerator.no_sync(student):
                loss = (work.forward if logged else work.measure)(batch, lambda_T)
            accumulate(of_ce, batch.step_mean(loss.ce_T), parameters, retain_graph=True)
            accumulate(of_kd, batch.step_mean(lambda_T * loss.kd_T), parameters)
            losses.append(loss.detached())
        sum_over_ranks(accelerator, of_ce + of_kd)
        return of_ce, of_kd, losses
