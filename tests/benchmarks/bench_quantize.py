"""What quantising a student costs and changes: bytes, seconds, KL and first choices, for each method.

    python -m tests.benchmarks.bench_quantize --checkpoint DIR --store URL --output DIR

GPTQ runs in the environment of `make install-quantize`, int8 in this one. Each row is one `export-model`, which
compares on rows of the store that did not calibrate.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from logitbank.progress import Progress

METHODS = {
    "int8": ["--quantize", "int8"],
    "gptq, 8 bits": ["--quantize", "gptq", "--bits", "8"],
    "gptq, 4 bits": ["--quantize", "gptq", "--bits", "4"],
}


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", required=True, help="a student of comparisons: adapter or whole model")
    parser.add_argument("--store", required=True, help="the label store that it was trained from")
    parser.add_argument("--output", required=True, type=Path, help="where the models go")
    parser.add_argument("--samples", default="256", help="rows that calibrate")
    parser.add_argument(
        "--python", default=".venv-quantize/bin/python", help="of the environment that has llm-compressor"
    )
    arguments = parser.parse_args()
    whole = str(arguments.output / "whole")
    _export(sys.executable, ["--checkpoint", arguments.checkpoint, "--output", whole])
    print("| method | group size | bytes | of the whole | KL (nats) | largest KL | same first choice | seconds |")
    print("|---|---:|---:|---:|---:|---:|---:|---:|")
    with Progress("exports", len(METHODS), "models") as progress:
        for name, options in METHODS.items():
            output = arguments.output / name.replace(", ", "-").replace(" ", "-")
            python, rows = sys.executable, ["--store", arguments.store]
            if "gptq" in options:
                python, rows = arguments.python, [*rows, "--samples", arguments.samples]
            started = time.monotonic()
            _export(python, ["--checkpoint", whole, "--output", str(output), *options, *rows])
            print(_row(name, output, time.monotonic() - started), flush=True)
            progress.advance(1)


def _export(python: str, arguments: list[str]) -> None:
    subprocess.run([python, "-m", "logitbank", "export-model", *arguments], check=True)


def _row(name: str, output: Path, seconds: float) -> str:
    result: dict[str, Any] = json.loads((output / "export.json").read_text())["result"]
    compared = result["compared"]
    cells = [
        name,
        result["quantization"].get("group_size", "–"),
        f"{result['bytes']:,}",
        f"{result['bytes'] / result['bytes_before']:.2f}",
        f"{compared['kl']:.1e}",
        f"{compared['largest_kl']:.1e}",
        f"{compared['same_first_choice']:.1%} of {compared['rows']}",
        f"{seconds:.0f}",
    ]
    return f"| {' | '.join(map(str, cells))} |"


if __name__ == "__main__":
    main()
