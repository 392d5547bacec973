"""One teacher pass and N students against N students with a live teacher: when the cache pays.

    python -m tests.benchmarks.bench_study --output runs/bench/study [--shared ../shared] [--students 16]

Both sides train the proxy model (full fine-tuning) for the same optimizer steps on the same examples of five tasks in
English with five demonstrations (QA three). The cached side is what a user runs: `build-teacher-cache` once, then one
`train-student` after another, imports, model loading and checkpoints counted. The live side is a bare loop: every
step runs the teacher over the few-shot prompts of its examples, and nothing is saved. Processor seconds of the child
processes, so that other work on the machine does not count.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from logitbank.configs import load_config
from tests.benchmarks.bench_student import Bench
from tests.benchmarks.proxy import SHARED, proxy_settings


def live_student(store_url: str, settings: Sequence[str], steps: int) -> None:
    """A student whose teacher runs in every step."""
    bench = Bench(store_url, load_config([], settings), torch.device("cpu"))
    data = bench.data("live")
    for number in range(steps):
        bench.step("live", data[number, 0], bench.examples(number))


def seconds_of(work: Callable[[], object]) -> float:
    """Processor seconds that the finished children of `work` took."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    work()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def run_module(module: str, *arguments: str) -> Callable[[], object]:
    """A command of ours in a process of its own."""
    return lambda: subprocess.run([sys.executable, "-m", module, *arguments], check=True, stderr=subprocess.DEVNULL)


def run_live(store_url: str, settings: Sequence[str], steps: int) -> Callable[[], object]:
    """The live loop in a process of its own."""

    def work() -> None:
        process = multiprocessing.get_context("spawn").Process(target=live_student, args=(store_url, settings, steps))
        process.start()
        process.join()
        if process.exitcode:
            raise RuntimeError(f"the live student ended with exit code {process.exitcode}")

    return work


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, metavar="DIR")
    parser.add_argument("--shared", type=Path, default=SHARED)
    parser.add_argument("--students", type=int, default=16)
    parser.add_argument("--examples", type=int, default=48, help="of each task")
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--batch", type=int, default=4)
    got = parser.parse_args()
    shutil.rmtree(got.output, ignore_errors=True)
    store = str(got.output / "store")
    settings = [
        *proxy_settings(got.shared, got.examples),
        "languages=[en]",
        "training.use_lora=false",
        "training.precision=fp32",
        f"training.max_steps={got.steps}",
        "training.warmup_steps=0",
        f"training.save_steps={got.steps}",
        f"training.global_batch_size={got.batch}",
        f"training.micro_batch_size={got.batch}",
    ]
    teacher = seconds_of(
        run_module("logitbank", "build-teacher-cache", "--store", store, "--view", "fewshot", *settings)
    )
    print(
        f"teacher pass over {5 * got.examples} examples: {teacher:.0f} s; students of {got.steps} steps of {got.batch}"
    )
    cached, live = teacher, 0.0
    for number in range(1, got.students + 1):
        output = got.output / f"student-{number}"
        student = ["--store", store, "--view", "fewshot", "--output", str(output), *settings, f"seed={number}"]
        cached += seconds_of(run_module("logitbank", "train-student", *student))
        live += seconds_of(run_live(store, [*settings, f"seed={number}"], got.steps))
        shutil.rmtree(output)
        if number & (number - 1) == 0:
            print(
                f"N = {number:2}: cached {cached:6.0f} s, live {live:6.0f} s, cached/live {cached / live:.2f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
