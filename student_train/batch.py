"""How the examples of a step become tensors, read and decoded ahead by threads of the training process.

Shapes: B sequences, L padded length, T answer tokens, K teacher logits, M drawn tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from logitbank.sequences import AnsweredSequence
from logitbank.storage import ExampleTable, StoreInfo, TeacherRows, TeacherStore, ViewRead, read_ahead
from logitbank.student_train.losses.base import TeacherLogits
from logitbank.student_train.losses.step_loss import weighted
from logitbank.student_train.order import SHARDS_PER_WINDOW, ExampleOrder, Positions, conversation_tokens
from logitbank.student_train.split import BatchPlan, Split

BYTES_PER_RANK = 8  # an id and a logit
MOST_BYTES = 1 << 30  # of teacher rows in memory
TEACHER = "teacher."  # before the names of the teacher's tensors
PAD_ID = 0  # right padding follows every answer: causal attention never sees it


@dataclass
class Batch:
    """One micro-batch on one rank.

    Attributes:
        input_ids_BL: each sequence without its last token (nothing is predicted from it).
        attention_mask_BL: 1 on real tokens.
        answer_index_T: positions in the flattened B·L whose logits predict the answer tokens, ascending.
        gold_T: the answer tokens.
        top_ids_TK: the teacher's ids, int32: half of what crosses to a GPU. K = 0 without a
            teacher; drawn tokens follow the ranks.
        task_T: index into the run's tasks of each answer token.
        teacher: the store's rows for the same tokens, or None without a teacher.
        step_tokens: answer tokens of the whole optimizer step, over all ranks.
        lengths: input tokens of each sequence.
        packed: whether the sequences are packed into one row.
        weight_T: how much each answer token counts, on average 1 over the step; None if all count the same.
    """

    input_ids_BL: torch.Tensor
    answer_index_T: torch.Tensor
    gold_T: torch.Tensor
    top_ids_TK: torch.Tensor
    task_T: torch.Tensor
    teacher: TeacherLogits | None
    step_tokens: int
    lengths: tuple[int, ...]
    packed: bool = False
    weight_T: torch.Tensor | None = None

    @property
    def real_tokens(self) -> int:
        """Tokens of `input_ids_BL` that are not padding."""
        return sum(self.lengths)

    def step_mean(self, values_T: torch.Tensor) -> torch.Tensor:
        """This micro-batch's share of a mean over the step's answer tokens: the mean is the sum of all shares."""
        return weighted(values_T, self.weight_T).sum() / self.step_tokens

    def to(self, device: torch.device) -> Batch:
        """The batch on a device; copies from pinned memory overlap with computation."""
        return self._replaced({name: t.to(device, non_blocking=True) for name, t in self._tensors().items()})

    def pin_memory(self) -> Batch:
        """The batch in memory that a GPU copies from by itself."""
        return self._replaced({name: t.pin_memory() for name, t in self._tensors().items()})

    def _tensors(self) -> dict[str, torch.Tensor]:
        """All tensors by name, the teacher's under `teacher.`."""
        own = {name: value for name, value in vars(self).items() if isinstance(value, torch.Tensor)}
        teacher = {} if self.teacher is None else vars(self.teacher)
        return own | {TEACHER + name: value for name, value in teacher.items() if value is not None}

    def _plain(self) -> dict[str, Any]:
        """All that is not a tensor, by name."""
        return {"step_tokens": self.step_tokens, "lengths": self.lengths, "packed": self.packed}

    def _replaced(self, tensors: Mapping[str, torch.Tensor]) -> Batch:
        return _batch(tensors, self._plain())


def _batch(tensors: Mapping[str, torch.Tensor], plain: Mapping[str, Any]) -> Batch:
    """The batch of what `Batch._tensors` and `Batch._plain` give."""
    own: dict[str, Any] = {name: tensor for name, tensor in tensors.items() if not name.startswith(TEACHER)}
    teacher = {name.removeprefix(TEACHER): tensors[name] for name in tensors if name.startswith(TEACHER)}
    rows = TeacherLogits(**teacher) if teacher else None
    return Batch(**own, teacher=rows, **plain)


@dataclass(frozen=True)
class MicroBatchRequest:
    """What a micro-batch is made of, as positions in the example table.

    Attributes:
        step: all examples of its optimizer step, over all ranks.
        examples: its own.
    """

    step: Positions
    examples: list[int]


class MicroBatches:
    """Micro-batch `(step, number)` of this rank, both counted from 0; see `Split`.

    Indexing reads one for itself. `micro_batch_loader` gives the same ones in order, and faster.
    """

    def __init__(
        self,
        open_store: Callable[[], TeacherStore],
        order: ExampleOrder,
        plan: BatchPlan,
        *,
        view: str | None,
        top_k: int | None,
        with_zeroshot: bool = False,
        table: str = "examples",
        loss_weight: str = "token",
    ) -> None:
        """Args beyond the obvious.

        open_store: opens the teacher store; called once.
        view: teacher view, or None to read no teacher array at all.
        top_k: how many of the stored ranks to read; None for all.
        with_zeroshot: also read the gold token's log-probability under the view `zeroshot`.
        table: `examples`, or `validation`, which has no teacher rows.
        loss_weight: what counts the same in the loss, each `token` or each `conversation`.
        """
        self._open_store = open_store
        self._order = order
        self._plan = plan
        self._table = table
        self._loss_weight = loss_weight
        self.reads: list[ViewRead] = []
        if view is not None:
            self.reads += [ViewRead(view, top_k), *([ViewRead("zeroshot", 1)] if with_zeroshot else [])]

    def __getitem__(self, index: tuple[int, int]) -> Batch:
        request = self.request(index)
        rows = tuple(self.store.read(request.examples, read.view, read.top_k) for read in self.reads)
        return self.make(request, rows)

    def request(self, index: tuple[int, int]) -> MicroBatchRequest:
        """The examples of one micro-batch."""
        step, number = index
        return MicroBatchRequest(self._split.examples(step), self._split.micro_batches(step)[number])

    def make(self, request: MicroBatchRequest, rows: Sequence[TeacherRows]) -> Batch:
        """The tensors of one micro-batch.

        Args:
            request: its examples.
            rows: theirs, of each of `reads`.
        """
        store, examples, chosen = self.store, self._examples, request.examples
        task_of = {name: number for number, name in enumerate(self._order.tasks)}
        return collate(
            [examples.sequence(i) for i in chosen],
            [task_of[store.info.tasks[int(examples.task[i])]] for i in chosen],
            rows[0] if rows else None,
            rows[1] if len(rows) > 1 else None,
            step_tokens=int(examples.answer_length[request.step].sum()),
            packed=self._plan.packed_tokens is not None,
            weights=self._weights(examples, request.step, chosen),
            signal=store.info.signal,
            untaught=store.info.untaught,
        )

    def _weights(self, examples: ExampleTable, whole: Positions, chosen: Sequence[int]) -> NDArray[np.float64] | None:
        """What a token of each chosen example counts for: 1 on average over the tokens of the whole step.

        A token counts 1/n where its conversation has n answer tokens, those of parts in other steps included.
        """
        if self._loss_weight == "token":
            return None
        answers = examples.answer_length[whole].astype(np.float64)
        scale = answers.sum() / (answers / self._conversation_tokens[whole]).sum()
        return scale / self._conversation_tokens[chosen]

    @cached_property
    def store(self) -> TeacherStore:
        """What is read, opened if it is used first."""
        return self._open_store()

    @cached_property
    def _examples(self) -> ExampleTable:
        table: ExampleTable = getattr(self.store, self._table)
        return table

    @cached_property
    def _split(self) -> Split:
        return Split(self._order, self._plan, self._examples.input_length)

    @cached_property
    def _conversation_tokens(self) -> Positions:
        return conversation_tokens(self._examples, sampled=self.store.info.answers is not None)


def collate(
    sequences: Sequence[AnsweredSequence],
    tasks: Sequence[int],
    rows: TeacherRows | None,
    zeroshot: TeacherRows | None = None,
    *,
    step_tokens: int,
    packed: bool = False,
    weights: NDArray[np.float64] | None = None,
    signal: str = "topk",
    untaught: Sequence[int] = (),
) -> Batch:
    """Pad sequences on the right, or put them into one row, and say where their answers are predicted.

    Args:
        sequences: of each example, with its answer spans.
        tasks: task index of each example.
        rows: teacher rows of these examples in this order, or None.
        zeroshot: likewise, of the view `zeroshot`, where a gate compares with it.
        step_tokens: answer tokens of the whole optimizer step.
        packed: whether to put them into one row.
        weights: what a token of each example counts for, or None if all count the same.
        signal: of the store that the rows are from.
        untaught: answer tokens whose rows carry no teacher term.
    """
    lengths = [len(sequence) - 1 for sequence in sequences]
    width = sum(lengths) if packed else max(lengths)
    starts = np.cumsum([0, *lengths[:-1]]) if packed else np.arange(len(lengths)) * width
    input_ids = np.full(width if packed else len(lengths) * width, PAD_ID, dtype=np.int64)
    for start, length, sequence in zip(starts, lengths, sequences, strict=True):
        input_ids[start : start + length] = sequence.ids[:-1]
    answer_index = [start + sequence.logit_positions for start, sequence in zip(starts, sequences, strict=True)]
    gold_T = torch.from_numpy(np.concatenate([sequence.answer_ids for sequence in sequences]).astype(np.int64))
    answer_lengths = [sequence.answer_length for sequence in sequences]
    return Batch(
        input_ids_BL=torch.from_numpy(input_ids.reshape(-1, width)),
        answer_index_T=torch.from_numpy(np.concatenate(answer_index)),
        gold_T=gold_T,
        top_ids_TK=teacher_ids(rows) if rows is not None else torch.empty(len(gold_T), 0, dtype=torch.int32),
        task_T=torch.from_numpy(np.repeat(np.asarray(tasks, dtype=np.int64), answer_lengths)),
        teacher=teacher_logits(rows, zeroshot, signal, gold_T, untaught) if rows is not None else None,
        step_tokens=step_tokens,
        lengths=tuple(lengths),
        packed=packed,
        weight_T=_tensor(np.repeat(weights, answer_lengths), torch.float32) if weights is not None else None,
    )


def micro_batch_loader(
    data: MicroBatches, indices: Iterable[tuple[int, int]], *, num_workers: int, pin_for: torch.device | None = None
) -> Generator[Batch]:
    """Micro-batches in order, read and decoded ahead by `num_workers` threads; close it to end them.

    Args:
        data: where they come from.
        indices: which ones.
        num_workers: how many threads; 0 reads when a micro-batch is asked for.
        pin_for: the CUDA device that they go to, from pinned memory.
    """

    def make(request: MicroBatchRequest, rows: Sequence[TeacherRows]) -> Batch:
        batch = data.make(request, rows)
        if pin_for is None:
            return batch
        with torch.cuda.device(pin_for):  # a thread begins on device 0
            return batch.pin_memory()

    requests = map(data.request, indices)
    kept = cache_bytes(data.store.info)
    return read_ahead(data.store, requests, data.reads, make, threads=num_workers, cache_bytes=kept)


def teacher_ids(rows: TeacherRows) -> torch.Tensor:
    """The ranked tokens, then the drawn ones, (T, K + M)."""
    ids = rows.token_ids if rows.sample_ids.shape[1] == 0 else np.concatenate([rows.token_ids, rows.sample_ids], axis=1)
    return _tensor(ids, torch.int32)


def sample_weights(rows: TeacherRows, signal: str) -> NDArray[np.float64]:
    """What each of the ranked and drawn tokens stands for, (T, K + M) float64; see `TeacherLogits`.

    A draw stands for its share of the probability of all that could be drawn. The ranks of a hybrid store,
    which could not, count as themselves; those of a sampled one, which could, for nothing more.
    """
    logsumexp = rows.logsumexp.astype(np.float64)[:, None]
    ranked = np.exp(rows.logits - logsumexp) if signal == "hybrid" else np.zeros(rows.logits.shape)
    draws = np.maximum(rows.sample_counts.sum(axis=1, keepdims=True), 1)
    drawn = np.exp(rows.sample_log_mass.astype(np.float64))[:, None] * rows.sample_counts / draws
    return np.concatenate([ranked, drawn], axis=1)


def cache_bytes(info: StoreInfo) -> int:
    """How much teacher signal to keep: what four windows of shards hold, and at most 1 GiB.

    Two are in use where all tasks move through the store at the same pace: one that is being read, the next that is
    decoded ahead. A task with more examples than the others stays longer in each of its windows.
    """
    return min(4 * window_bytes(info), MOST_BYTES)


def window_bytes(info: StoreInfo) -> int:
    """What the decoded rows of a window of shards take."""
    return min(SHARDS_PER_WINDOW, info.shards) * info.shard_tokens * info.top_k * BYTES_PER_RANK


def teacher_logits(
    rows: TeacherRows, zeroshot: TeacherRows | None, signal: str, gold_T: torch.Tensor, untaught: Sequence[int]
) -> TeacherLogits:
    """Teacher rows as tensors; see `collate`."""
    teacher = TeacherLogits(
        logits_TK=_tensor(rows.logits, torch.float32),
        logsumexp_T=_tensor(rows.logsumexp, torch.float32),
        entropy_T=_tensor(rows.entropy, torch.float32),
        gold_logit_T=_tensor(rows.gold_logit, torch.float32),
        gold_rank_T=_tensor(rows.gold_rank, torch.int64),
        log_tail_T=_tensor(rows.log_tail, torch.float32),
        weight_TC=_tensor(sample_weights(rows, signal), torch.float32) if signal != "topk" else None,
        taught_T=(~torch.isin(gold_T, torch.tensor(untaught))).float() if untaught else None,
    )
    if zeroshot is None:
        return teacher
    cross_entropy_T = _tensor(zeroshot.logsumexp - zeroshot.gold_logit, torch.float32)
    return replace(teacher, zeroshot_cross_entropy_T=cross_entropy_T)


def _tensor(array: NDArray[Any], dtype: torch.dtype) -> torch.Tensor:
    return torch.as_tensor(np.ascontiguousarray(array), dtype=dtype)
