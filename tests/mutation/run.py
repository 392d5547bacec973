"""Which small changes to the code no test notices: `make mutants`, or python -m tests.mutation.run.

    python -m tests.mutation.run [--target losses …] [--sample 40] [--seed 0] [--jobs 2]

Each mutant is written into a copy of the repository and met by the tests of its room, in a process forked from one
that has torch and transformers loaded. A mutant that fails a test, or runs three times as long as the tests do, is
killed. Prints a row for each target, and the mutants that survived: some change nothing that can be seen; the others
want a test.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import contextlib
import importlib
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.mutation.mutants import Mutant, mutants_of

ROOT = Path(__file__).resolve().parents[2]
PRELOADED = ("torch", "transformers", "accelerate", "peft", "datasets", "duckdb", "pytest", "hypothesis", "zarr")


@dataclass(frozen=True)
class Target:
    """Files to change, and the tests that have to notice."""

    files: tuple[str, ...]
    tests: tuple[str, ...]


TARGETS = {
    "losses": Target(
        ("student_train/losses/*.py",),
        ("tests/student_train/test_divergences.py", "tests/student_train/test_losses.py"),
    ),
    "strategies": Target(
        ("student_train/strategies/*.py",),
        ("tests/student_train/test_strategies.py", "tests/student_train/test_strategies_over_steps.py"),
    ),
    "packing": Target(
        ("student_train/split.py", "models/packed_attention.py"),
        ("tests/student_train/test_packing.py", "tests/models/test_packed_attention.py"),
    ),
    "identity": Target(
        ("evaluation/identity.py", "configs/keys.py", "logitbank/experiment.py"),
        ("tests/evaluation/test_identity.py", "tests/configs/test_config.py", "tests/test_experiment.py"),
    ),
    "views": Target(
        ("storage/results/views.py",),
        ("tests/storage/test_results_views.py", "tests/storage/test_results_reference.py"),
    ),
    "scoring": Target(
        ("tasks/scoring/*.py", *(f"tasks/{name}.py" for name in ("nli", "pa", "qa", "ner", "pos", "gsm8k"))),
        tuple(f"tests/tasks/test_{name}.py" for name in ("labels", "qa", "tags", "published_settings")),
    ),
    "sampling": Target(
        ("tasks/data.py", "tasks/demonstrations.py"), ("tests/tasks/test_data.py", "tests/tasks/test_fewshot.py")
    ),
    "conversations": Target(
        ("tasks/files.py", *(f"tasks/conversations/{name}.py" for name in ("messages", "formats", "reading"))),
        tuple(f"tests/tasks/test_{name}.py" for name in ("files", "conversations", "chat")),
    ),
    "preference": Target(
        ("tasks/preference/*.py", "tasks/texts.py"),
        (
            *(f"tests/tasks/test_preference_{name}.py" for name in ("rows", "preparation", "packing")),
            "tests/tasks/test_csv_files.py",
        ),
    ),
    "intervals": Target(
        ("evaluation/report/intervals.py",),
        ("tests/evaluation/test_intervals.py", "tests/evaluation/test_intervals_over_cells.py"),
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Outcome:
    """What became of a mutant."""

    target: str
    file: str
    mutant: Mutant
    survived: bool


def copy_repository(place: Path) -> None:
    """Copy every file that git tracks or would, links included; real data beside the repository are linked."""
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listed, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    for name in filter(None, names.split("\0")):
        if not (ROOT / name).exists() and not (ROOT / name).is_symlink():
            continue  # deleted, not yet committed
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, place / name, follow_symlinks=False)
    if (ROOT.parent / "shared").exists():
        (place.parent / "shared").symlink_to((ROOT.parent / "shared").resolve())


def run_tests(place: Path, tests: Sequence[str], timeout: float | None) -> tuple[bool, float]:
    """Whether the tests pass in a copy, and their seconds; a run past the timeout does not."""
    started = time.monotonic()
    process = multiprocessing.get_context("fork").Process(target=_pytest, args=(place, list(tests)))
    process.start()
    process.join(timeout)
    if process.exitcode is None and process.pid is not None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # with the commands that its tests have started
        process.kill()
        process.join()
    return process.exitcode == 0, time.monotonic() - started


def _pytest(place: Path, tests: list[str]) -> None:
    os.setsid()
    os.chdir(place)
    sys.path[:] = [str(place), *(entry for entry in sys.path if Path(entry or ".").resolve() != ROOT)]
    os.environ["PYTHONPATH"] = str(place)
    for name in [name for name in sys.modules if name.split(".")[0] in ("logitbank", "tests")]:
        del sys.modules[name]
    sys.dont_write_bytecode = True
    sink = os.open(os.devnull, os.O_WRONLY)
    os.dup2(sink, 1)
    os.dup2(sink, 2)
    import pytest

    options = ["-x", "-q", "-p", "no:cacheprovider", "--rootdir", str(place)]
    os._exit(int(pytest.main([*options, *tests])))


class Worker:
    """A copy of the repository, one mutant at a time."""

    def __init__(self, folder: Path) -> None:
        self.place = folder / "repository"
        self.place.mkdir(parents=True)
        copy_repository(self.place)

    def kills(self, file: str, mutant: Mutant, tests: Sequence[str], timeout: float) -> bool:
        """Whether the tests notice."""
        path = self.place / file
        original = path.read_bytes()
        path.write_text(mutant.source)
        try:
            return not run_tests(self.place, tests, timeout)[0]
        finally:
            path.write_bytes(original)


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", nargs="+", choices=TARGETS, default=list(TARGETS))
    parser.add_argument("--sample", type=int, help="mutants of each target; default all")
    parser.add_argument("--seed", type=int, default=0, help="draws the sample")
    parser.add_argument("--jobs", type=int, default=2, help="mutants at a time")
    got = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    for name in PRELOADED:
        importlib.import_module(name)
    outcomes = []
    with tempfile.TemporaryDirectory() as folder:
        workers = [Worker(Path(folder) / str(number)) for number in range(got.jobs)]
        for name in got.target:
            outcomes += measure(name, workers, got.sample, got.seed)
    print_report(got.target, outcomes)


def measure(name: str, workers: list[Worker], sample: int | None, seed: int) -> list[Outcome]:
    """What becomes of a target's mutants, or of some of them."""
    target = TARGETS[name]
    place = workers[0].place
    files = sorted(str(path.relative_to(place)) for pattern in target.files for path in place.glob(pattern))
    drawn = [(file, mutant) for file in files for mutant in mutants_of((place / file).read_text())]
    if sample is not None and sample < len(drawn):
        drawn = random.Random(seed).sample(drawn, sample)
    passed, seconds = run_tests(place, target.tests, None)
    if not passed:
        sys.exit(f"{name}: the tests fail without any change: {' '.join(target.tests)}")
    print(f"{name}: {len(drawn)} mutants, {seconds:.0f} s of tests", file=sys.stderr, flush=True)
    idle = list(workers)

    def meet(file: str, mutant: Mutant) -> Outcome:
        worker = idle.pop()
        try:
            outcome = Outcome(name, file, mutant, not worker.kills(file, mutant, target.tests, 3 * seconds + 20))
        finally:
            idle.append(worker)
        if outcome.survived:
            print(f"  survived: {file}:{mutant}", file=sys.stderr, flush=True)
        return outcome

    with concurrent.futures.ThreadPoolExecutor(len(workers)) as pool:
        return list(pool.map(meet, *zip(*drawn, strict=True)))


def print_report(names: Sequence[str], outcomes: Sequence[Outcome]) -> None:
    """A row for each target, then the survivors."""
    print("| target | mutants | killed | rate |\n| --- | ---: | ---: | ---: |")
    for name in [*names, "all"]:
        of = [outcome for outcome in outcomes if name in (outcome.target, "all")]
        killed = sum(not outcome.survived for outcome in of)
        print(f"| {name} | {len(of)} | {killed} | {killed / max(1, len(of)):.0%} |")
    for outcome in outcomes:
        if outcome.survived:
            print(f"- {outcome.file}:{outcome.mutant}")


if __name__ == "__main__":
    main()
