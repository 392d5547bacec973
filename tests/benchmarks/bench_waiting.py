"""The share of a training step spent waiting for data, as `train-student` logs it, with the default workers.

    python -m tests.benchmarks.bench_waiting --store STORE --model MODEL [--steps 12] [key=value…]

Trains as a user would, LoRA unless told otherwise, by cross-entropy alone and from the store's first view, and reads
the training log, a row a step. The first step waits for the workers to start, and is given apart.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from pathlib import Path

import pyarrow.dataset as ds

from logitbank.configs import Config, load_config
from logitbank.storage import TeacherStore
from logitbank.student_train.records import Run
from logitbank.student_train.train import train


def logged(config: Config, store: str, view: str | None) -> tuple[dict[str, list[float]], float]:
    """Values of all steps of a run, by metric, and the seconds of a step."""
    with tempfile.TemporaryDirectory() as directory:
        final = train(Run(config, store, view, Path(directory) / "run", Path(directory) / "results"))
        seconds = json.loads((final / "training.json").read_text())["seconds"] / config.training.max_steps
        table = ds.dataset(Path(directory) / "results" / "training_log").to_table(filter=ds.field("task") == "all")
    found: dict[str, list[float]] = {}
    for row in sorted(table.to_pylist(), key=lambda row: row["step"]):
        found.setdefault(row["metric"], []).append(row["value"])
    return found, seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    got = parser.parse_args()
    store = TeacherStore.open(got.store)
    settings = [f"model.name={got.model}", f"tasks=[{','.join(store.info.tasks)}]", f"training.max_steps={got.steps}"]
    config = load_config([], [*settings, "training.logging_steps=1", *got.overrides])
    print(f"K = {store.info.top_k}, {store.info.encoding}, {config.training.num_workers} workers")
    for view in (None, store.views[0]):
        values, seconds = logged(config, got.store, view)
        waits, answers = values["data_wait"], values["answer_tokens"]
        print(
            f"{view or 'cross-entropy alone'}: {seconds:.2f} s and {statistics.mean(answers):,.0f} answer tokens a step"
        )
        print(f"  waiting: {statistics.mean(waits[1:]):.2%} of a step, {max(waits[1:]):.2%} of the worst")
        micro_batches = config.training.global_batch_size // config.training.micro_batch_size
        print(f"  waiting: {1000 * statistics.mean(waits[1:]) * seconds / micro_batches:.1f} ms a micro-batch")
        print(f"  waiting in the first step: {waits[0]:.1%}")


if __name__ == "__main__":
    main()
