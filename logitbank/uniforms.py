"""Random numbers that are a function of what they are for: the same in any order, process or run."""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray


def uniforms(seed: int, name: str, length: int) -> NDArray[np.float64]:
    """(length,) float64 in [0, 1), a function of (seed, name, position) alone, the same every time."""
    keys = (f"{seed}\n{name}\n{position}".encode() for position in range(length))
    bits = [int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "little") >> 11 for key in keys]
    return np.asarray(bits, dtype=np.float64) / (1 << 53)
