"""What teachers are worth where labels are wrong: distilled against finetuned over small worlds of preferences.

    python -m tests.benchmarks.bench_preference_world --output runs/bench/preference-world [--seeds 5]

Each seed is a world of its own (see scripts/preference_world.py): hidden values of words, 300 training comparisons with
three tenths of their labels wrong, 2,000 right ones that teachers alone read. A world is the whole study, as `logitbank
study preference` runs it. The test rows are right. Both columns of a student are the mean of its folds' probabilities,
before and after each fold's temperature. Differences are taken within a world; intervals are Student's t over worlds.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from logitbank.scripts.demo import run_preferences
from logitbank.scripts.incontext import mean_and_interval
from logitbank.scripts.preference_world import PreferenceWorld
from tests.benchmarks.class_probabilities import log_losses, read_test

STUDENTS = ("finetuned", "distilled")


def run_seed(output: Path, seed: int) -> dict[tuple[str, str], float]:
    """One world; log loss on its test rows by student and kind of probability."""
    plan = run_preferences(output / f"seed-{seed}", world=PreferenceWorld(seed=seed))
    test = read_test(Path(plan.results))
    return {key: float(log_losses(value, test.targets_NC).mean()) for key, value in test.probabilities.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, metavar="DIR")
    parser.add_argument("--seeds", type=int, default=5)
    got = parser.parse_args()
    started = time.monotonic()
    found = [run_seed(got.output, seed) for seed in range(got.seeds)]
    print(f"\n{got.seeds} worlds, {(time.monotonic() - started) / got.seeds:.0f} s each; log loss in nats\n")
    print("| | before the temperature | after |\n|---|---:|---:|")
    for student in STUDENTS:
        cells = [mean_and_interval([losses[student, kind] for losses in found]) for kind in ("raw", "p")]
        print(f"| {student} | " + " | ".join(f"{mean:.3f} ±{half:.3f}" for mean, half in cells) + " |")
    cells = [
        mean_and_interval([losses["finetuned", kind] - losses["distilled", kind] for losses in found])
        for kind in ("raw", "p")
    ]
    print("| gain of distilled | " + " | ".join(f"{mean:+.3f} ±{half:.3f}" for mean, half in cells) + " |")


if __name__ == "__main__":
    main()
