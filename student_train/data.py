"""Which examples form an optimizer step, and how they become tensors.

The order is a pure function of (seed, position), so a step's examples are the same at any world size,
accumulation, number of workers, and after a resume. Shapes: B sequences, L padded length, T answer
tokens, K teacher logits.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from logitbank.storage import StoreInfo
from logitbank.student_train.losses.base import TeacherLogits

SHARDS_PER_WINDOW = 8
BYTES_PER_RANK = 8  # of a store's widest encoding in memory
ALIGNMENT = 64  # bytes
PAD_ID = 0  # right padding stands behind every answer: causal attention never sees it


class ExampleOrder:
    """The endless stream of training examples: tasks in turn, each through its own permutations.

    Position p belongs to task p mod (number of tasks); a task starts a fresh permutation of its examples
    whenever one is used up. A permutation takes the store's shards in a random order that all tasks
    share, `SHARDS_PER_WINDOW` at a time, and shuffles the task's examples within those: the store's
    order is random already, and what is read together lies together.
    """

    def __init__(self, tasks: dict[str, np.ndarray], shard_of: np.ndarray, seed: int) -> None:
        """Args: `tasks` maps names to positions in the example table, `shard_of` is the shard of each."""
        self.tasks = tuple(tasks)
        self._examples = tuple(tasks.values())
        self._shard_of = shard_of
        self._seed = seed
        self._permutations: dict[tuple[int, int], np.ndarray] = {}

    def counts(self) -> dict[str, int]:
        """Examples of each task."""
        return {task: len(examples) for task, examples in zip(self.tasks, self._examples, strict=True)}

    def example(self, position: int) -> int:
        """Position in the example table of the example at a position of the stream."""
        turn, task = divmod(position, len(self.tasks))
        epoch, index = divmod(turn, len(self._examples[task]))
        return int(self._permutation(task, epoch)[index])

    def step(self, step: int, batch_size: int) -> list[int]:
        """The examples of one optimizer step, counted from 0."""
        return [self.example(position) for position in range(step * batch_size, (step + 1) * batch_size)]

    def _permutation(self, task: int, epoch: int) -> np.ndarray:
        if (task, epoch) not in self._permutations:
            self._permutations.pop((task, epoch - 2), None)
            self._permutations[task, epoch] = self._draw_permutation(task, epoch)
        return self._permutations[task, epoch]

    def _draw_permutation(self, task: int, epoch: int) -> np.ndarray:
        examples = self._examples[task]
        shards = int(self._shard_of.max()) + 1
        turn_of_shard = np.random.default_rng([self._seed, epoch]).permutation(shards)
        window = turn_of_shard[self._shard_of[examples]] // SHARDS_PER_WINDOW
        # keyed by the task's name: its order does not change when other tasks join or leave
        key = [self._seed, epoch, zlib.crc32(self.tasks[task].encode())]
        return examples[np.lexsort((np.random.default_rng(key).random(len(examples)), window))]


@dataclass
class Batch:
    """One micro-batch on one rank.

    Attributes:
        input_ids_BL: prompt and answer without its last token (nothing is predicted from it).
        attention_mask_BL: 1 on real tokens.
        answer_index_T: positions in the flattened B·L whose logits predict the answer tokens, ascending.
        gold_T: the answer tokens.
        top_ids_TK: the teacher's ids, int32: half of what crosses between processes and to a GPU. K = 0 without a
            teacher; drawn tokens stand behind the ranks.
        task_T: index into the run's tasks of each answer token.
        teacher: the store's rows for the same tokens, or None without a teacher.
        step_tokens: answer tokens of the whole optimizer step, over all ranks.
        real_tokens: tokens of `input_ids_BL` that are not padding.
    """

    input_ids_BL: torch.Tensor
    attention_mask_BL: torch.Tensor
    answer_index_T: torch.Tensor
    gold_T: torch.Tensor
    top_ids_TK: torch.Tensor
    task_T: torch.Tensor
    teacher: TeacherLogits | None
    step_tokens: int
    real_tokens: int

    def to(self, device: torch.device) -> Batch:
        """The batch on a device; copies from pinned memory overlap with computation."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> Batch:
        """Called by `DataLoader(pin_memory=True)`."""
        return self._map(lambda tensor: tensor.pin_memory())

    def __reduce__(self) -> tuple[Any, ...]:
        """Cross to the training process as one tensor: each costs a file, a mapping and a connection."""
        tensors: list[torch.Tensor] = []
        self._map(lambda tensor: tensors.append(tensor) or tensor)  # type: ignore[func-returns-value]
        sizes = [-(-tensor.nbytes // ALIGNMENT) * ALIGNMENT for tensor in tensors]
        shared = torch.UntypedStorage._new_shared(sum(sizes))  # as PyTorch's own collation: no second copy
        packed = torch.empty(0, dtype=torch.uint8).set_(shared)
        for tensor, part in zip(tensors, packed.split(sizes), strict=True):
            part[: tensor.nbytes].view(tensor.dtype).view(tensor.shape).copy_(tensor)
        bare = iter([(tensor.dtype, tensor.shape, size) for tensor, size in zip(tensors, sizes, strict=True)])
        return _unpack, (packed, self._values(lambda tensor: next(bare)))

    def _map(self, function: Callable[[torch.Tensor], torch.Tensor]) -> Batch:
        return _batch(self._values(function))

    def _values(self, function: Callable[[torch.Tensor], Any]) -> dict[str, Any]:
        """All fields, the teacher's in a dictionary of their own, with `function` of each tensor in its place."""

        def of(value: Any) -> Any:
            if isinstance(value, (Batch, TeacherLogits)):
                return {field.name: of(getattr(value, field.name)) for field in fields(value)}
            return function(value) if isinstance(value, torch.Tensor) else value

        return dict(of(self))


def _batch(values: dict[str, Any]) -> Batch:
    """A batch of what `Batch._values` gives."""
    teacher = values["teacher"]
    return Batch(**{**values, "teacher": None if teacher is None else TeacherLogits(**teacher)})


def _unpack(packed: torch.Tensor, bare: dict[str, Any]) -> Batch:
    """The batch whose tensors lie one after the other in `packed`; `bare` has (dtype, shape, bytes) for each."""
    start = 0

    def restored(values: dict[str, Any]) -> dict[str, Any]:
        nonlocal start
        found = {}
        for name, value in values.items():
            if isinstance(value, dict):
                value = restored(value)
            elif isinstance(value, tuple):
                dtype, shape, size = value
                part = packed[start : start + shape.numel() * dtype.itemsize]
                value, start = part.view(dtype).view(shape), start + size
            found[name] = value
        return found

    return _batch(restored(bare))


@dataclass(frozen=True)
class BatchPlan:
    """How a global batch is split over ranks and accumulation steps."""

    global_batch_size: int
    micro_batch_size: int
    world_size: int
    rank: int

    @property
    def accumulation_steps(self) -> int:
        """Micro-batches of one rank in one optimizer step."""
        return self.global_batch_size // (self.micro_batch_size * self.world_size)


class MicroBatches(Dataset[Batch]):
    """Micro-batch i of this rank: optimizer step i // accumulation, accumulation step i % accumulation.

    Inside a global batch, examples are sorted by length and cut into micro-batches, dealt to the ranks
    in turn: little padding, and ranks that work at the same time work on similar lengths. The split
    changes no sum, so it changes no result.
    """

    def __init__(
        self,
        open_store: Callable[[], Any],
        order: ExampleOrder,
        plan: BatchPlan,
        *,
        view: str | None,
        top_k: int | None,
        with_zeroshot: bool = False,
        table: str = "examples",
    ) -> None:
        """Args beyond the obvious.

        open_store: opens the teacher store; called once in every process that reads.
        view: teacher view, or None to read no teacher array at all.
        top_k: how many of the stored ranks to read; None for all.
        with_zeroshot: also read the gold token's log-probability under the view `zeroshot`.
        table: `examples`, or `validation`, which has no teacher rows.
        """
        self._open_store = open_store
        self._order = order
        self._plan = plan
        self._view = view
        self._top_k = top_k
        self._with_zeroshot = with_zeroshot
        self._table = table
        self._opened: Any = None

    def __getitem__(self, index: int) -> Batch:
        store = self._store()
        examples = getattr(store, self._table)
        step, accumulation = divmod(index, self._plan.accumulation_steps)
        whole = self._order.step(step, self._plan.global_batch_size)
        lengths = np.array([examples.prompt_length[i] + examples.answer_length[i] for i in whole])
        longest_first = [whole[i] for i in np.argsort(-lengths, kind="stable")]
        first = (accumulation * self._plan.world_size + self._plan.rank) * self._plan.micro_batch_size
        chosen = longest_first[first : first + self._plan.micro_batch_size]
        rows = store.read(chosen, self._view, self._top_k) if self._view is not None else None
        zeroshot = store.read(chosen, "zeroshot", 1) if self._with_zeroshot else None
        task_of = {name: number for number, name in enumerate(self._order.tasks)}
        return collate(
            [np.asarray(examples.prompt_ids(i)) for i in chosen],
            [np.asarray(examples.answer_ids(i)) for i in chosen],
            [task_of[store.info.tasks[int(examples.task[i])]] for i in chosen],
            rows,
            zeroshot,
            step_tokens=int(sum(int(examples.answer_length[i]) for i in whole)),
            signal=store.info.signal,
        )

    def _store(self) -> Any:
        """Opened where it is used first, so that every worker process has its own handles and cache."""
        if self._opened is None:
            self._opened = self._open_store()
        return self._opened

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": None}


def collate(
    prompts: Sequence[np.ndarray],
    answers: Sequence[np.ndarray],
    tasks: Sequence[int],
    rows: Any | None,
    zeroshot: Any | None = None,
    *,
    step_tokens: int,
    signal: str = "topk",
) -> Batch:
    """Pad sequences on the right and say where their answers are predicted.

    Args:
        prompts: token ids of each example's prompt.
        answers: token ids of each example's answer, end of turn included.
        tasks: task index of each example.
        rows: teacher rows (`TeacherRows`) of these examples in this order, or None.
        zeroshot: likewise, of the view `zeroshot`, where a gate compares with it.
        step_tokens: answer tokens of the whole optimizer step.
        signal: of the store that the rows are from.
    """
    sequences = [np.concatenate([p, a[:-1]]) for p, a in zip(prompts, answers, strict=True)]
    length = max(len(sequence) for sequence in sequences)
    input_ids_BL = np.full((len(sequences), length), PAD_ID, dtype=np.int64)
    attention_mask_BL = np.zeros_like(input_ids_BL)
    answer_index: list[np.ndarray] = []
    for row, (sequence, prompt, answer) in enumerate(zip(sequences, prompts, answers, strict=True)):
        input_ids_BL[row, : len(sequence)] = sequence
        attention_mask_BL[row, : len(sequence)] = 1
        # answer token j is predicted at position len(prompt) + j - 1
        answer_index.append(row * length + len(prompt) - 1 + np.arange(len(answer)))
    gold_T = torch.from_numpy(np.concatenate(answers).astype(np.int64))
    return Batch(
        input_ids_BL=torch.from_numpy(input_ids_BL),
        attention_mask_BL=torch.from_numpy(attention_mask_BL),
        answer_index_T=torch.from_numpy(np.concatenate(answer_index)),
        gold_T=gold_T,
        top_ids_TK=_teacher_ids(rows) if rows is not None else torch.empty(len(gold_T), 0, dtype=torch.int32),
        task_T=torch.from_numpy(np.repeat(np.asarray(tasks, dtype=np.int64), [len(a) for a in answers])),
        teacher=_teacher_logits(rows, zeroshot, signal) if rows is not None else None,
        step_tokens=step_tokens,
        real_tokens=sum(len(sequence) for sequence in sequences),
    )


def micro_batch_loader(
    data: MicroBatches, *, start: int, stop: int, num_workers: int, pin_memory: bool
) -> DataLoader[Batch]:
    """Micro-batches start … stop−1 in order, read and decoded ahead by `num_workers` processes."""
    return DataLoader(
        data,
        batch_size=None,
        sampler=range(start, stop),
        num_workers=num_workers,
        prefetch_factor=4 if num_workers else None,
        generator=torch.Generator(),  # the default one belongs to dropout: a loader must not draw from it
        pin_memory=pin_memory,
    )


def _teacher_ids(rows: Any) -> torch.Tensor:
    """The ranked tokens, then the drawn ones, (T, K + M)."""
    ids = rows.token_ids if rows.sample_ids.shape[1] == 0 else np.concatenate([rows.token_ids, rows.sample_ids], axis=1)
    return _tensor(ids, torch.int32)


def sample_weights(rows: Any, signal: str) -> np.ndarray:
    """What each of the ranked and drawn tokens stands for, (T, K + M) float64; see `TeacherLogits`.

    A draw stands for its share of the probability of all that could be drawn. The ranks of a hybrid store,
    which could not, stand for themselves; those of a sampled one, which could, for nothing more.
    """
    logsumexp = rows.logsumexp.astype(np.float64)[:, None]
    ranked = np.exp(rows.logits - logsumexp) if signal == "hybrid" else np.zeros(rows.logits.shape)
    draws = np.maximum(rows.sample_counts.sum(axis=1, keepdims=True), 1)
    drawn = np.exp(rows.sample_log_mass.astype(np.float64))[:, None] * rows.sample_counts / draws
    return np.concatenate([ranked, drawn], axis=1)


def cache_bytes(info: StoreInfo, num_workers: int) -> int:
    """How much teacher signal a worker should keep: two windows of shards, and all workers at most 1 GiB.

    More would be dead weight: a shard that the stream has left does not come back before the next epoch.
    """
    windows = 2 * SHARDS_PER_WINDOW * info.shard_tokens * info.top_k * BYTES_PER_RANK
    return min(windows, (1 << 30) // max(1, num_workers))


def _teacher_logits(rows: Any, zeroshot: Any | None, signal: str) -> TeacherLogits:
    teacher = TeacherLogits(
        logits_TK=_tensor(rows.logits, torch.float32),
        logsumexp_T=_tensor(rows.logsumexp, torch.float32),
        entropy_T=_tensor(rows.entropy, torch.float32),
        gold_logit_T=_tensor(rows.gold_logit, torch.float32),
        gold_rank_T=_tensor(rows.gold_rank, torch.int64),
        log_tail_T=_tensor(rows.log_tail, torch.float32),
        weight_TC=_tensor(sample_weights(rows, signal), torch.float32) if signal != "topk" else None,
    )
    if zeroshot is None:
        return teacher
    cross_entropy_T = _tensor(zeroshot.logsumexp - zeroshot.gold_logit, torch.float32)
    return replace(teacher, zeroshot_cross_entropy_T=cross_entropy_T)


def _tensor(array: Any, dtype: torch.dtype) -> torch.Tensor:
    return torch.as_tensor(np.ascontiguousarray(array), dtype=dtype)
