"""From a file of comparisons to rows and folds: processor seconds and peak memory.

    python -m tests.benchmarks.bench_preference_rows [--rows 88000] [--model DIR]

Synthetic comparisons, as long and as many as those of an arena: answers of 1,000 characters in the mean, a tenth of the
rows with an earlier prompt, a hundredth with an earlier row's answers the other way round. `build-teacher-cache --view
none` runs as a process of its own. With `--model`, its `--dry-run` is measured too: all comparisons packed for that
model's tokenizer.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

WORDS = [f"{a}{b}{c}" for a, b, c in itertools.product("bdfklmnprst", "aeiou", ("n", "r", "st", ""))]
LABELS = ("winner_model_a", "winner_model_b", "winner_tie")
COLUMNS = ("id", "prompt", "response_a", "response_b", *LABELS)
MOST_SECONDS, MOST_BYTES = 120, 2 << 30


def comparisons(rows: int, seed: int = 0) -> Iterator[list[str]]:
    """Rows in the arena's layout."""
    draw = random.Random(seed)
    prompts: list[str] = []
    last: list[str] = []
    for number in range(rows):
        if last and draw.random() < 0.01:
            yield [str(number), last[1], last[3], last[2], *last[4:]]
            continue
        new = not prompts or draw.random() < 0.9
        prompt = turns(draw, 60, 1.2) if new else draw.choice(prompts)
        prompts += [prompt] * new
        won = draw.choices(range(3), (35, 34, 31))[0]
        texts = [prompt, turns(draw, 250, 0.8), turns(draw, 250, 0.8)]
        last = [str(number), *texts, *(str(int(column == won)) for column in range(3))]
        yield last


def turns(draw: random.Random, words: int, spread: float) -> str:
    """One turn as JSON, of log-normal length."""
    length = min(4000, max(3, int(words * draw.lognormvariate(-(spread**2) / 2, spread))))
    return json.dumps([" ".join(draw.choices(WORDS, k=length))])


def measure(*arguments: str) -> tuple[str, float, float, int]:
    """What a command printed, its processor seconds, its seconds, and its peak memory in bytes."""
    started = time.perf_counter()
    with tempfile.TemporaryFile() as printed:
        process = subprocess.Popen([sys.executable, "-m", "logitbank", *arguments], stdout=printed)
        _, status, used = os.wait4(process.pid, 0)
        printed.seek(0)
        text = printed.read().decode()
    if status:
        sys.exit(f"logitbank {' '.join(arguments)}: ended with {status}")
    return text, used.ru_utime + used.ru_stime, time.perf_counter() - started, used.ru_maxrss * 1024


def main() -> None:
    """Write the file, run the command, print what it took."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=88_000)
    parser.add_argument("--model", help="whose tokenizer packs them; default: no packing")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "train.csv"
        with file.open("w", newline="") as target:
            writer = csv.writer(target)
            writer.writerow(COLUMNS)
            writer.writerows(comparisons(arguments.rows))
        print(f"{arguments.rows:,} rows, {file.stat().st_size / 1e6:,.0f} MB")
        command = ["build-teacher-cache", "--store", f"{folder}/store", "--view", "none"]
        options = ["tasks=[preference]", f"preference.train={file}", f"model.name={arguments.model or 'none'}"]
        runs = {"rows and folds": command}
        if arguments.model:
            runs["dry run with packing"] = [*command, "--dry-run"]
        for name, run in runs.items():
            text, processor, seconds, peak = measure(*run, *options)
            print(text)
            print(f"{name}: {processor:.0f} processor seconds, {seconds:.0f} s, {peak / 2**30:.2f} GiB at most")
            if name == "rows and folds" and (processor > MOST_SECONDS or peak > MOST_BYTES):
                sys.exit(f"expected at most {MOST_SECONDS} processor seconds and {MOST_BYTES / 2**30:.0f} GiB")


if __name__ == "__main__":
    main()
