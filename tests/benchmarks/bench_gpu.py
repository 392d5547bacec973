"""Teacher and student on a GPU: python -m tests.benchmarks.bench_gpu.

A model of Qwen3-1.7B's shape with random weights: scoring and a whole build against bare forward passes, the vLLM
teacher against the transformers teacher, a student's step with and without a teacher, what bfloat16 changes, and
weights of 4 and 8 bits. Prints a Markdown table. A part whose packages are not installed says so and is left out; a
part that fails says so, and the exit status is 1.

Without a GPU it does nothing. `--device cpu --shape tiny` runs all parts on two layers, to see that they work; times
are then processor seconds, and mean nothing.
"""

from __future__ import annotations

import argparse
import importlib
import platform
import sys
import tempfile
import traceback
from pathlib import Path

import torch

from logitbank.errors import LogitbankError
from tests.benchmarks.gpu.setting import SHAPES, Row, Setting

PARTS = ("teacher", "agreement", "capture", "student", "quantised")


def run_part(name: str, setting: Setting) -> tuple[list[Row], bool]:
    """The rows of a part, and whether it ended well; what was measured before a failure is kept."""
    rows: list[Row] = []
    try:
        for row in importlib.import_module(f"tests.benchmarks.gpu.{name}").run(setting):
            print(f"{row.part}: {row.what}: {row.value}", file=sys.stderr, flush=True)
            rows.append(row)
    except ModuleNotFoundError as error:
        return [*rows, Row(name, "left out", f"needs the package {error.name}")], True
    except LogitbankError as error:
        return [*rows, Row(name, "left out", str(error).splitlines()[0])], True
    except torch.OutOfMemoryError:
        return [*rows, Row(name, "failed", "out of memory")], False
    except Exception as error:  # the other parts have a GPU for a short time only
        traceback.print_exc()
        said = str(error).splitlines() or [""]
        return [*rows, Row(name, "failed", f"{type(error).__name__}: {said[0]}")], False
    finally:
        setting.clean()
    return rows, True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--shape", choices=sorted(SHAPES), default="qwen3-1.7b")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    got = parser.parse_args()
    device = torch.device(got.device)
    if device.type != "cpu" and not torch.accelerator.is_available():
        print(
            f"bench_gpu: --device {got.device}: expected a GPU, found none; run it where there is one, or try the "
            "script with --device cpu --shape tiny",
            file=sys.stderr,
        )
        raise SystemExit(2)
    rows: list[Row] = []
    well = True
    with tempfile.TemporaryDirectory() as folder:
        setting = Setting(device, got.shape, Path(folder), got.rounds)
        setting.save_model()
        setting.clean()
        for name in got.parts:
            found, ended = run_part(name, setting)
            rows += found
            well &= ended
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{platform.machine()}, no GPU"
    print(f"{where}; {got.shape}, {got.rounds} rounds; torch {torch.__version__}\n\n| part | what | |\n|---|---|---:|")
    for row in rows:
        print(f"| {row.part} | {row.what} | {row.value} |")
    if not well:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
