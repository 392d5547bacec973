"""What reading costs: memory does not grow with the store."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.storage import stores

LIMIT = 13 << 20  # bytes beyond what a process has that has read one batch

EPOCHS = f"""
import resource, sys
from pathlib import Path
import numpy as np
import zarr
from logitbank.storage import TeacherStore

zarr.config.set({{"threading.max_workers": 1}})  # how many it starts, each with a stack, depends on the machine's load

def epoch(cache_bytes):
    store = TeacherStore.open(sys.argv[1], cache_bytes=cache_bytes)
    order = np.random.default_rng(0).permutation(len(store.examples))
    order = order[np.argsort(order // 200, kind="stable")]  # shuffled inside a window, as in training
    store.read(order[:8], "zeroshot")
    yield
    yield sum(len(store.read(order[start : start + 8], "zeroshot")) for start in range(0, len(order), 8))

bounded, kept = epoch(1 << 20), epoch(1 << 30)
next(bounded), next(kept)
status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
resource.setrlimit(resource.RLIMIT_DATA, (1024 * int(status["VmData"].split()[0]) + {LIMIT},) * 2)
print(next(bounded), flush=True)
next(kept)
print("kept")
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's limit on a process's data")
def test_an_epoch_fits_in_less_memory_than_the_decoded_store(tmp_path: Path) -> None:
    examples = stores.records(2400, longest=10)
    stores.build(str(tmp_path), examples, views=("zeroshot",), shard_tokens=512, chunk_tokens=512, top_k=256)
    answer_tokens = sum(len(e.answer_ids) for e in examples)
    assert answer_tokens * 256 * 8 > 1.5 * LIMIT  # ids and logits, decoded
    command = [sys.executable, "-W", "ignore", "-c", EPOCHS, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout.split() == [str(answer_tokens)], done.stderr
    # The limit is one that a reader of the whole store meets; a library may crash where it does.
    assert "MemoryError" in done.stderr or done.returncode < 0
