"""Peak memory of work that has a process to itself."""

from __future__ import annotations

import multiprocessing
import resource
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor

import torch


def peak_gib() -> float:
    """The most this process has held so far, on its GPU where it has one, in GiB."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def peaks_apart(kinds: Iterable[str], work: Callable[[str], float]) -> dict[str, float]:
    """What `work` says of each kind, in a fresh process each, printed too.

    Not a multiprocessing.Pool, whose workers may have no workers.
    """
    peaks = {}
    for kind in kinds:
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
            peaks[kind] = pool.submit(work, kind).result()
    print("peak memory of the process, GiB: " + ", ".join(f"{kind} {peak:.2f}" for kind, peak in peaks.items()))
    return peaks
