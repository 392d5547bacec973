"""What a distilled step costs beside plain fine-tuning, a plain transformers step, and a live teacher.

    python -m tests.benchmarks.bench_student --store STORE --model MODEL [--rounds 20] [--lora]

Every round runs one optimizer step of each kind on the same micro-batch, in turn; ratios are medians over
rounds. On a CPU the clock is processor time, so that other work on the machine does not count; peak memory is
that of one process per kind. The kinds:

    sft        our step without teacher arrays (`--view none`)
    distilled  our step on the store's top-K logits, MSE
    plain      the model's own cross-entropy over all positions, as in the transformers examples
    live       distilled, after a forward pass of the teacher over prompts with five demonstrations
"""

from __future__ import annotations

import argparse
import functools
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import transformers

from logitbank.configs import Config, load_config
from logitbank.configs.schema import DistillationConfig
from logitbank.sequences import AnsweredSequence
from logitbank.storage import TeacherRows, TeacherStore
from logitbank.student_train.batch import Batch, MicroBatches, collate, micro_batch_loader
from logitbank.student_train.losses.mse import Mse
from logitbank.student_train.losses.step_loss import step_loss
from logitbank.student_train.module import StudentModule, run_student
from logitbank.student_train.order import example_order
from logitbank.student_train.setup import parameter_groups
from logitbank.student_train.split import BatchPlan, Indices, Split
from logitbank.student_train.student import build_student
from tests.benchmarks.memory import peak_gib, peaks_apart

KINDS = ("sft", "distilled", "plain", "live")
DEMONSTRATIONS = 5


class Bench:
    """One student, one teacher and the batches that all kinds of step share."""

    def __init__(self, store_url: str, config: Config, device: torch.device) -> None:
        self.device = device
        self.store = TeacherStore.open(store_url)
        model = build_student(config, device)
        self.student = StudentModule(model, chunk_tokens=config.training.loss_chunk_tokens)
        self.optimizer = torch.optim.AdamW(parameter_groups(self.student, 0.01), lr=1e-5)
        self.teacher: Any = None
        self.order = example_order(self.store, config)
        self.batch_size = config.training.micro_batch_size
        self.plan = BatchPlan(self.batch_size, self.batch_size, 1, 0)

    def data(self, kind: str) -> MicroBatches:
        """Micro-batches as training draws them, read by whoever asks for them."""
        return MicroBatches(
            functools.partial(TeacherStore.open, self.store.url),
            self.order,
            self.plan,
            view=self.store.views[0] if kind in ("distilled", "live") else None,
            top_k=None,
        )

    def examples(self, number: int) -> list[int]:
        """The examples of a round's micro-batch."""
        return self.order.step(number, self.batch_size)

    def step(self, kind: str, batch: Batch, examples: Sequence[int]) -> None:
        """One forward, backward and optimizer step."""
        if kind == "live":
            self._run_teacher(examples)
        if kind == "plain":
            ids = torch.cat([batch.input_ids_BL, torch.zeros_like(batch.input_ids_BL[:, :1])], dim=1)
            labels = torch.full_like(ids, -100)
            rows, columns = batch.answer_index_T // (ids.shape[1] - 1), batch.answer_index_T % (ids.shape[1] - 1)
            ids[rows, columns + 1] = labels[rows, columns + 1] = batch.gold_T
            mask = (torch.arange(ids.shape[1]) <= torch.tensor(batch.lengths)[:, None]).long().to(ids.device)
            loss = self.student.model(input_ids=ids, attention_mask=mask, labels=labels, use_cache=False).loss
        else:
            weights_T = torch.full(batch.gold_T.shape, 0.5, device=self.device)
            logits = run_student(self.student, batch)
            tokens = len(batch.gold_T)
            mse = Mse(DistillationConfig(), vocab_size=0)
            loss = step_loss(logits, batch.teacher, kd_term=mse, lambda_T=weights_T, step_tokens=tokens).total
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.student.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def _run_teacher(self, examples: Sequence[int]) -> None:
        """What a live teacher adds: a few-shot prompt of every example, logits at its answer."""
        if self.teacher is None:
            name = self.store.info.model
            self.teacher = transformers.AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32)
            self.teacher.to(self.device).eval()
        table = self.store.examples
        sequences = []
        for i in examples:
            same_task = np.flatnonzero(table.task == table.task[i])[:DEMONSTRATIONS]
            shots = [table.sequence(int(j)).ids for j in same_task]
            own = table.sequence(i)
            sequences.append(AnsweredSequence.answering(np.concatenate([*shots, own.prompt_ids]), own.answer_ids))
        batch = collate(sequences, [0] * len(sequences), None, step_tokens=1).to(self.device)
        keep = torch.zeros_like(batch.input_ids_BL, dtype=torch.bool)
        keep.view(-1)[batch.answer_index_T] = True
        with torch.inference_mode():
            logits = self.teacher(batch.input_ids_BL, logits_to_keep=keep).logits
            logits.topk(min(256, logits.shape[-1]), dim=-1)


def prompt_dominates(bench: Bench, kind: str) -> Batch:
    """4 sequences of 192 tokens, 24 of them answers, random ids and teacher rows."""
    rng = np.random.default_rng(0)
    vocabulary, k = bench.store.info.tokenizer_size, min(256, bench.store.info.top_k)
    sequences = [AnsweredSequence(rng.integers(0, vocabulary, 193), [(169, 24)]) for _ in range(4)]
    rows = None
    if kind == "distilled":
        logits = -np.sort(-rng.standard_normal((96, k)).astype(np.float32), axis=1)
        scalars = np.zeros(96, dtype=np.float32)
        rows = TeacherRows(
            token_ids=rng.integers(0, vocabulary, (96, k), dtype=np.int32),
            logits=logits,
            logsumexp=logits[:, 0] + 1,
            entropy=scalars,
            gold_logit=scalars,
            gold_rank=scalars.astype(np.int32),
            log_tail=scalars - 3,
        )
    return collate(sequences, [0] * 4, rows, step_tokens=96)


def clock(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


def measure(bench: Bench, kinds: Sequence[str], rounds: int, draw: Callable[..., Any]) -> dict[str, list[float]]:
    """Seconds of every kind in every round, kinds in turn, two rounds of warming up left out."""
    seconds: dict[str, list[float]] = {kind: [] for kind in kinds}
    for number in range(rounds + 2):
        for kind in kinds:
            batch, examples = draw(number, kind)
            batch = batch.to(bench.device)
            started = clock(bench.device)
            bench.step(kind, batch, examples)
            if number >= 2:
                seconds[kind].append(clock(bench.device) - started)
    return seconds


def report(title: str, seconds: dict[str, list[float]], base: str) -> None:
    print(f"{title}: median seconds per step, median ratio to {base}")
    for kind, values in seconds.items():
        ratios = [a / b for a, b in zip(values, seconds[base], strict=True)]
        print(f"  {kind:10} {statistics.median(values):8.3f}  {statistics.median(ratios):6.3f}")


def peak_memory(store_url: str, config: Config, rounds: int, device: str, kind: str) -> float:
    """GiB that a process needs that runs one kind of step only."""
    bench = Bench(store_url, config, torch.device(device))
    indices = Indices(Split(bench.order, bench.plan, bench.store.examples.input_length), 0, rounds)
    loader = micro_batch_loader(bench.data(kind), indices, num_workers=1)
    for number, batch in enumerate(loader):
        bench.step(kind, batch.to(bench.device), bench.examples(number))
    return peak_gib()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--lora", action="store_true", help="default: full fine-tuning")
    parser.add_argument("--skip-memory", action="store_true")
    got = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    tasks = ",".join(TeacherStore.open(got.store).info.tasks)
    config = load_config([], [f"model.name={got.model}", f"tasks=[{tasks}]", f"training.use_lora={got.lora}"])
    if not got.skip_memory:
        peaks = peaks_apart(KINDS, functools.partial(peak_memory, got.store, config, 8, device))
        print(f"  distilled/sft {peaks['distilled'] / peaks['sft']:.3f}")
    bench = Bench(got.store, config, torch.device(device))
    data = {kind: bench.data(kind) for kind in KINDS}
    drawn = measure(bench, KINDS, got.rounds, lambda number, kind: (data[kind][number, 0], bench.examples(number)))
    report("batches of the store", drawn, "sft")
    few = {kind: prompt_dominates(bench, kind) for kind in KINDS[:3]}
    drawn = measure(bench, KINDS[:3], got.rounds, lambda number, kind: (few[kind], []))
    report("4 x 192 tokens, 24 answers each", drawn, "plain")


if __name__ == "__main__":
    main()
