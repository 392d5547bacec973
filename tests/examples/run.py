"""Runs the page of the examples as it stands: every `bash` block of a copy of the folder, outside this checkout.

    .venv-examples/bin/python tests/examples/run.py [DIR]

`make examples` makes that environment, with the wheel alone. DIR keeps the copy and what the examples write. Without
it, they are removed.

The interpreter says which environment is tested: commands and `python` are those beside it. It needs the standard
library only. The first command that fails ends the run.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BLOCK = re.compile(r"^```bash\n(.*?)^```", re.MULTILINE | re.DOTALL)
WHERE = "import logitbank; print(logitbank.__file__)"


def blocks() -> list[str]:
    """What the page shows to run, in order."""
    return BLOCK.findall((ROOT / "examples/README.md").read_text(encoding="utf-8"))


def environment() -> dict[str, str]:
    """Commands of this interpreter's environment, packages as pinned, no download of models."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {
        **kept,
        "PATH": path,
        "PIP_CONSTRAINT": str(ROOT / "constraints.txt"),
        "PIP_QUIET": "1",
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"),
    }


def run_all(shown: Sequence[str], folder: Path) -> None:
    """Run blocks one after the other, each until its first command that fails, and say how long each took."""
    for block in shown:
        print(f"\n$ {block.strip()}", flush=True)
        started = time.monotonic()
        done = subprocess.run(["bash", "-euo", "pipefail", "-c", block], cwd=folder, env=environment())
        if done.returncode != 0:
            sys.exit(f"examples/README.md: exit code {done.returncode} from\n{block}")
        print(f"({time.monotonic() - started:.0f} s)", flush=True)


def run_page(folder: Path) -> None:
    """Copy the examples there, see that the package comes from the environment, run the page."""
    shutil.copytree(ROOT / "examples", folder, ignore=shutil.ignore_patterns("runs", "models", ".*"))
    found = subprocess.run(["python", "-c", WHERE], cwd=folder, env=environment(), capture_output=True, text=True)
    if not found.stdout.startswith(sys.prefix):
        sys.exit(f"logitbank: expected the wheel in {sys.prefix}, got {found.stdout or found.stderr}")
    run_all(blocks(), folder)


def main() -> None:
    """Run the page in the folder that the arguments name, or in one that goes away."""
    if len(sys.argv) > 1:
        run_page(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory(prefix="logitbank-examples-") as scratch:
            run_page(Path(scratch) / "examples")


if __name__ == "__main__":
    main()
