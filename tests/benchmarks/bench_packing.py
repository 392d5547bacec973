"""Packed rows beside padded micro-batches, and a distilled step beside cross-entropy on the same rows.

    python -m tests.benchmarks.bench_packing --store STORE --model MODEL [--rounds 10]

STORE holds conversations. Every round runs one optimizer step of each kind on the same examples, in turn; ratios are
medians over rounds. On a CPU the clock is processor time, so that other work on the machine does not count. The kinds:

    padded, distilled      micro-batches of 4 sequences of similar length
    packed, distilled      rows without padding
    packed, cross-entropy  the same rows, no teacher array read
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence

import torch

from logitbank.configs import load_config
from logitbank.configs.schema import DistillationConfig
from logitbank.storage import TeacherStore
from logitbank.student_train.batch import Batch, MicroBatches
from logitbank.student_train.losses.mse import Mse
from logitbank.student_train.losses.step_loss import step_loss
from logitbank.student_train.module import StudentModule, run_student
from logitbank.student_train.order import example_order
from logitbank.student_train.setup import parameter_groups
from logitbank.student_train.split import BatchPlan, Split
from logitbank.student_train.student import build_student
from tests.benchmarks.bench_student import clock

PADDED, PACKED, PLAIN = "padded, distilled", "packed, distilled", "packed, cross-entropy"


class Kind:
    """A student, and the micro-batches of its steps."""

    def __init__(self, name: str, store: TeacherStore, settings: list[str], plan: BatchPlan, device: str) -> None:
        config = load_config([], settings)
        order = example_order(store, config)
        self.device = torch.device(device)
        self.distils = name != PLAIN
        self.split = Split(order, plan, store.examples.input_length)
        view = store.views[0] if self.distils else None
        self.data = MicroBatches(lambda: store, order, plan, view=view, top_k=None)
        packing = plan.packed_tokens is not None
        chunk = config.training.loss_chunk_tokens
        self.student = StudentModule(build_student(config, self.device), chunk_tokens=chunk, packing=packing)
        self.optimizer = torch.optim.AdamW(parameter_groups(self.student, 0.01), lr=1e-5)

    def batches(self, step: int) -> list[Batch]:
        """Micro-batches of a step, on the device."""
        return [self.data[step, n].to(self.device) for n in range(len(self.split.micro_batches(step)))]

    def take_step(self, batches: Sequence[Batch]) -> float:
        """One optimizer step; its loss."""
        kd_term = Mse(DistillationConfig(), vocab_size=0) if self.distils else None
        total = 0.0
        for batch in batches:
            weights_T = torch.full(batch.gold_T.shape, 0.5, device=self.device)
            logits = run_student(self.student, batch)
            loss = step_loss(
                logits, batch.teacher, kd_term=kd_term, lambda_T=weights_T, step_tokens=batch.step_tokens
            ).total
            loss.backward()
            total += loss.item()
        torch.nn.utils.clip_grad_norm_(self.student.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--batch", type=int, default=8, help="examples of a step")
    parser.add_argument("--tokens", type=int, default=4096, help="of a packed row, at most")
    got = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    store = TeacherStore.open(got.store)
    tasks = f"tasks=[{','.join(store.info.tasks)}]"
    settings = [f"model.name={got.model}", tasks, "lora.dropout=0"]
    padded, packed = BatchPlan(got.batch, 4, 1, 0), BatchPlan(got.batch, 4, 1, 0, got.tokens)
    plans = {PADDED: padded, PACKED: packed, PLAIN: packed}
    kinds = {name: Kind(name, store, settings, plan, device) for name, plan in plans.items()}
    seconds: dict[str, list[float]] = {name: [] for name in kinds}
    losses: dict[str, list[float]] = {name: [] for name in kinds}
    real, laid = dict.fromkeys(kinds, 0), dict.fromkeys(kinds, 0)
    for number in range(got.rounds + 1):
        for name, kind in kinds.items():
            batches = kind.batches(number)
            started = clock(kind.device)
            losses[name].append(kind.take_step(batches))
            if number:  # the first warms up
                seconds[name].append(clock(kind.device) - started)
                real[name] += sum(batch.real_tokens for batch in batches)
                laid[name] += sum(batch.input_ids_BL.numel() for batch in batches)
    apart = max(abs(a / b - 1) for a, b in zip(losses[PADDED], losses[PACKED], strict=True))
    print(
        f"{got.rounds} steps of {got.batch} examples, {real[PACKED]:,} tokens; largest difference of losses {apart:.1e}"
    )
    for name, values in seconds.items():
        ratio = statistics.median(a / b for a, b in zip(values, seconds[PLAIN], strict=True))
        print(
            f"  {name:22} padding {1 - real[name] / laid[name]:5.1%}  {real[name] / sum(values):8,.0f} tokens/s  "
            f"{statistics.median(values):7.3f} s a step  {ratio:6.3f} of {PLAIN}"
        )


if __name__ == "__main__":
    main()
