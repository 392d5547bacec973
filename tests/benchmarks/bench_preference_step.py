"""What a step of a student of comparisons costs with teacher logits beside one without, and reading them once.

    python -m tests.benchmarks.bench_preference_step --model MODEL [--tokens 512] [--rows 4] [--rounds 20] [--lora]

Every round runs one optimizer step of each kind on the same pairs of random tokens, in turn, from the rows in memory
to new weights; the ratio is a median over rounds. On a CPU the clock is processor time, so that other work on the
machine does not count. The kinds:

    sft        cross-entropy alone (`--view none`)
    distilled  KL, cross-entropy and squared error, two views averaged, answers swapped
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import torch

from logitbank.configs import load_config
from logitbank.preference import PackedPair
from logitbank.sequences import Span
from logitbank.student_train.classifier.batch import PackedPairs, TrainingRows
from logitbank.student_train.classifier.losses import average_views, pair_terms
from logitbank.student_train.classifier.order import PairOrder
from logitbank.student_train.classifier.train import build_classifier
from logitbank.student_train.setup import parameter_groups
from tests.benchmarks.bench_student import clock, report

STORE_ROWS = 88_000
KINDS = ("sft", "distilled")


def random_rows(count: int, tokens: int, *, taught: bool) -> TrainingRows:
    """Pairs of so many tokens; the same with and without teachers."""
    generator = np.random.default_rng(0)
    fifth = tokens // 5
    spans = Span(fifth, 2 * fifth - 5), Span(3 * fifth, 2 * fifth - 5)
    packed = PackedPairs(PackedPair(generator.integers(5, 1000, tokens).astype(np.int32), *spans) for _ in range(count))
    target_NC = generator.dirichlet([1, 1, 1], count).astype(np.float32)
    views = {view: generator.normal(0, 2, (count, 3)).astype(np.float32) for view in ("one", "other")}
    teacher_NC, taught_N = average_views(views, {}, 2.0)
    nowhere = np.zeros(count, np.bool_)
    return TrainingRows(
        packed=packed,
        target_NC=target_NC,
        teacher_NC=teacher_NC if taught else np.zeros_like(teacher_NC),
        taught_N=taught_N if taught else nowhere,
        external_N=nowhere,
        prompt_key_N=np.zeros(count, np.uint64),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--rows", type=int, default=4, help="of a step")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--lora", action="store_true", help="default: full fine-tuning")
    got = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    config = load_config([], [f"model.name={got.model}", "tasks=[preference]", f"training.use_lora={got.lora}"])
    student = build_classifier(config, device)
    optimizer = torch.optim.AdamW(parameter_groups(student, 0.01), lr=1e-5)
    rows = {kind: random_rows(64, got.tokens, taught=kind == "distilled") for kind in KINDS}
    orders = {kind: PairOrder(np.full(64, kind == "distilled"), got.rows, seed=1) for kind in KINDS}
    seconds: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for number in range(got.rounds + 2):
        for kind in KINDS if number % 2 else reversed(KINDS):
            started = clock(device)
            batch = rows[kind].batch(orders[kind].step(number)).to(device)
            terms = pair_terms(
                student(batch.pairs),
                batch.target_BC,
                batch.teacher_BC,
                batch.taught_B,
                alpha=0.5,
                temperature=2.0,
                mse_weight=0.1,
                label_smoothing=0.05,
            )
            terms.loss_B.mean().backward()
            torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            if number >= 2:
                seconds[kind].append(clock(device) - started)
    report(f"{got.rows} pairs of {got.tokens} tokens", seconds, "sft")
    views = {view: np.random.default_rng(0).normal(0, 2, (STORE_ROWS, 3)).astype(np.float32) for view in ("one", "two")}
    started = time.process_time()
    average_views(views, {"one": 2.0}, 2.0)
    print(f"two views of {STORE_ROWS:,} rows averaged, once: {time.process_time() - started:.3f} s")


if __name__ == "__main__":
    main()
