"""What reading costs: memory does not grow with the store."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np

from storage import TeacherStore
from tests.storage import stores


def test_an_epoch_needs_its_cache_and_one_batch_not_the_store(tmp_path: Path) -> None:
    examples = stores.records(1200, longest=10)
    stores.build(str(tmp_path), examples, views=("zeroshot",), shard_tokens=512, chunk_tokens=512, top_k=256)
    whole = sum(len(e.answer_ids) for e in examples) * 256 * 8  # ids and logits, decoded
    peaks = {}
    for cache_bytes in (1 << 20, 1 << 30):
        store = TeacherStore.open(str(tmp_path), cache_bytes=cache_bytes)
        order = np.random.default_rng(0).permutation(len(examples))
        order = order[np.argsort(order // 200, kind="stable")]  # shuffled inside a window, as in training
        store.read(order[:8], "zeroshot")
        tracemalloc.start()
        for start in range(0, len(order), 8):
            store.read(order[start : start + 8], "zeroshot")
        peaks[cache_bytes] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peaks[1 << 20] < 5e6 < 8e6 < peaks[1 << 30] < whole
