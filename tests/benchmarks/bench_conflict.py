"""What `gradient_conflict` costs: the cosine over all trainable parameters, over the last layer's, and none.

    python -m tests.benchmarks.bench_conflict --store STORE --model MODEL [--rounds 12] [--lora]

Every round is one optimizer step of `train-student`'s own loop of each kind on the same micro-batch, in turn; the clock
is as in `bench_student`. Peak memory is that of one process per kind. The kinds:

    none        `fixed`, which asks for no cosine
    last layer  `gradient_conflict` with `conflict_parameters` naming the last layer
    all         `gradient_conflict` over all trainable parameters
"""

from __future__ import annotations

import argparse
import functools
from pathlib import Path
from typing import Any

import torch

from logitbank.configs import Config, load_config
from logitbank.models.huggingface import text_config
from logitbank.storage import TeacherStore
from logitbank.student_train.batch import MicroBatches
from logitbank.student_train.module import StudentModule
from logitbank.student_train.order import example_order
from logitbank.student_train.records import Run
from logitbank.student_train.setup import make_accelerator, parameter_groups, split_batch
from logitbank.student_train.step import Stepper
from logitbank.student_train.student import build_student
from tests.benchmarks.bench_student import clock, report
from tests.benchmarks.memory import peak_gib, peaks_apart

KINDS = ("none", "last layer", "all")


class Bench:
    """One student and optimizer, a stepper for each kind."""

    def __init__(self, store_url: str, settings: list[str], kinds: tuple[str, ...]) -> None:
        configs = {kind: configure(kind, settings) for kind in kinds}
        config = configs[kinds[0]]
        store = TeacherStore.open(store_url)
        order, view = example_order(store, config), store.views[0]
        plan = split_batch(config.training)
        accelerator = make_accelerator(config.training, plan)
        self.device = accelerator.device
        model = build_student(config, self.device)
        student: Any = StudentModule(model, chunk_tokens=config.training.loss_chunk_tokens)
        optimizer: Any = torch.optim.AdamW(parameter_groups(student, config.training.weight_decay), lr=1e-5)
        student, optimizer = accelerator.prepare(student, optimizer)
        runs = {kind: Run(configs[kind], store_url, view, Path("unused"), Path("unused")) for kind in kinds}
        self.steppers = {kind: Stepper(accelerator, student, optimizer, runs[kind], store, order) for kind in kinds}
        self.batches = MicroBatches(lambda: store, order, plan, view=view, top_k=None)

    def seconds(self, number: int) -> dict[str, float]:
        """Seconds of one step of each kind on one micro-batch."""
        batch = self.batches[number, 0].to(self.device)
        found = {}
        for kind, stepper in self.steppers.items():
            started = clock(self.device)
            stepper.take_step(number, [batch], diagnose=False)
            found[kind] = clock(self.device) - started
        return found


def configure(kind: str, settings: list[str]) -> Config:
    """The configuration of a kind of step: one micro-batch each."""
    config = load_config([], settings)
    strategy = "fixed" if kind == "none" else "gradient_conflict"
    more = [f"distillation.strategy={strategy}", f"training.global_batch_size={config.training.micro_batch_size}"]
    if kind == "last layer":
        more.append(rf"distillation.conflict_parameters=layers\.{text_config(config.model).num_hidden_layers - 1}\.")
    return load_config([], [*settings, *more])


def peak_memory(store_url: str, settings: list[str], kind: str) -> float:
    """GiB of a process that runs one kind of step only."""
    bench = Bench(store_url, settings, (kind,))
    for number in range(6):
        bench.seconds(number)
    return peak_gib()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--lora", action="store_true", help="default: full fine-tuning")
    got = parser.parse_args()
    tasks = ",".join(TeacherStore.open(got.store).info.tasks)
    settings = [f"model.name={got.model}", f"tasks=[{tasks}]", f"training.use_lora={got.lora}"]
    peaks_apart(KINDS, functools.partial(peak_memory, got.store, settings))
    bench = Bench(got.store, settings, KINDS)
    rounds = [bench.seconds(number) for number in range(got.rounds + 2)][2:]  # two to warm up
    report("cosine over", {kind: [found[kind] for found in rounds] for kind in KINDS}, "none")


if __name__ == "__main__":
    main()
