"""`Trainer` of transformers, with a store's teacher in its loss.

    L = (Σ_t CE_t + Σ_t λ_t KD_t) / N,   N = answer tokens of the whole optimizer step (`num_items_in_batch`)

Shapes: B rows, L padded length, T answer tokens of a micro-batch.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
import transformers

from logitbank.configs import DistillationConfig
from logitbank.errors import ConfigError
from logitbank.integrations.joining import StoreJoin
from logitbank.losses import token_terms, token_weights
from logitbank.models.head import causal_lm
from logitbank.student_train.dataset import TeacherDataset
from logitbank.student_train.taught import TeacherTensors, without_teacher

__all__ = ["DistillationMixin", "DistillationTrainer", "StoreJoin"]

_Trainer: Any = object  # what it is mixed into has the methods that it calls


class DistillationMixin(_Trainer):
    """Puts the KD term into the loss of a `Trainer` or of a class derived from it, named before that class.

    Training batches come from a `TeacherDataset` through a `DistillationCollator`, or from any dataset with
    `join=StoreJoin(…)`. Evaluation is left to the trainer. The log gets `ce` and `kd`, means over the answer tokens
    since it was last written.
    """

    data_collator: Any
    _signature_columns: Any

    def __init__(
        self,
        *arguments: Any,
        distillation: DistillationConfig | None = None,
        join: StoreJoin | None = None,
        **options: Any,
    ) -> None:
        """All that the trainer takes, and two arguments more.

        Args:
            arguments: of the trainer.
            distillation: `loss`, `lambda_distill`, `temperature`, `normalize_logits`, `schedule`, `schedule_steps` and
                `gate`, as in a configuration; None takes the defaults.
            join: finds teacher rows for rows of any dataset; None if `train_dataset` is a `TeacherDataset`.
            options: of the trainer.

        Raises:
            ConfigError: a strategy or gate that only `train-student` has, or a row that is not an example of the store.
        """
        self.distillation = distillation or DistillationConfig()
        self._join = join
        self._sums: torch.Tensor | None = None
        _check(self.distillation)
        super().__init__(*arguments, **options)
        if join is not None and hasattr(self.train_dataset, "__len__"):  # a stream is checked as it comes
            join.check(self.train_dataset)

    def get_train_dataloader(self) -> Any:
        """The trainer's own, with the teacher joined to its batches."""
        own = self.data_collator
        if self._join is not None:
            self.data_collator = self._join.collator(own)
        try:
            return super().get_train_dataloader()
        finally:
            self.data_collator = own

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """Cross-entropy and KD of a training batch; without a teacher, in evaluation, the trainer's own loss."""
        rest, teacher = without_teacher(inputs)
        if teacher is None:
            if self.model.training:
                raise ConfigError(
                    "train_dataset: its batches have no teacher rows; pass a TeacherDataset with a view and a "
                    "DistillationCollator, or join=StoreJoin(...)"
                )
            return super().compute_loss(model, rest, return_outputs, num_items_in_batch)
        rest.pop("labels")
        keep = self._at_answers(rest["input_ids"], teacher)
        outputs = model(**rest, **keep)
        logits = outputs.logits.flatten(0, -2) if keep else outputs.logits
        ce_T, kd_T = token_terms(logits, teacher, self.distillation)
        step, steps = self.state.global_step, self.state.max_steps
        lambda_T = token_weights(self.distillation, teacher, step=step, steps=steps)
        total = (self.distillation.ce_weight * ce_T + lambda_T * kd_T).sum() / self._step_tokens(
            num_items_in_batch, len(ce_T)
        )
        self._add(ce_T, kd_T)
        return (total, outputs) if return_outputs else total

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """The trainer's log with `ce` and `kd`."""
        if "loss" in logs and self._sums is not None:
            ce, kd, tokens = self.accelerator.reduce(self._sums, "sum").tolist()
            logs |= {"ce": ce / tokens, "kd": kd / tokens}
            self._sums = None
        super().log(logs, start_time)

    def _at_answers(self, input_ids: torch.Tensor, teacher: TeacherTensors) -> dict[str, torch.Tensor]:
        """Asks the model for the logits at the answers alone, where its forward can leave the others out."""
        inner = causal_lm(self.accelerator.unwrap_model(self.model))
        if "logits_to_keep" not in inspect.signature(type(inner).forward).parameters:
            return {}
        keep_BL = torch.zeros_like(input_ids, dtype=torch.bool)
        keep_BL.view(-1)[teacher.index_T] = True
        return {"logits_to_keep": keep_BL}

    def _step_tokens(self, num_items: torch.Tensor | int | None, own: int) -> torch.Tensor | float:
        """What the sum is divided by, so that the trainer's averages over ranks and micro-batches give L."""
        if num_items is None:
            if self.model.training and (self.args.gradient_accumulation_steps > 1 or self.args.world_size > 1):
                raise ConfigError(
                    f"model: {type(self.model).__name__} does not accept num_items_in_batch, so the loss cannot be "
                    "averaged over the answer tokens of a whole step; set gradient_accumulation_steps=1 in one process"
                )
            return own
        if self.args.average_tokens_across_devices:  # tokens of all ranks, whose gradients are averaged
            return num_items / (self.accelerator.num_processes // self.get_tp_size())
        return num_items

    def _add(self, ce_T: torch.Tensor, kd_T: torch.Tensor) -> None:
        """Count a micro-batch for the log."""
        if self.model.training:
            sums = torch.stack([ce_T.detach().sum(), kd_T.detach().sum(), ce_T.new_tensor(len(ce_T))]).double()
            self._sums = sums if self._sums is None else self._sums + sums

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        dataset = self.train_dataset if train_dataset is None else train_dataset
        if isinstance(dataset, TeacherDataset) and dataset.shuffle_seed is not None:
            return dataset.sampler()
        return super()._get_train_sampler(train_dataset)

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        wanted = [name for name in ("example_id", "seq_lengths") if name not in self._signature_columns]
        if self._join is not None and wanted:
            self._signature_columns = [*self._signature_columns, *wanted]


class DistillationTrainer(DistillationMixin, transformers.Trainer):
    """`transformers.Trainer` that learns from a store; see `DistillationMixin`."""


def _check(distillation: DistillationConfig) -> None:
    """Refuse what needs the loop of `train-student`."""
    if distillation.strategy != "fixed":
        raise ConfigError(
            f"distillation.strategy: expected fixed in a Trainer, got {distillation.strategy}; train-student "
            "supports the others"
        )
    if distillation.gate == "fewshot_gain":
        raise ConfigError(
            "distillation.gate: expected none or teacher_correct in a Trainer, got fewshot_gain, which compares two "
            "views; use train-student"
        )
