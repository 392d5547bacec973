"""Shares of prompts, drawn by their content: what is held out, and what each part of it is for."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

PARTS = ("selection", "calibration", "holdout")  # of the validation split, in the order of their numbers
_HELD_OUT, _PART = 0x9E3779B97F4A7C15, 0xD1B54A32D192ED03  # two draws of the same prompt have nothing in common


def is_held_out(keys: NDArray[np.uint64], share: float) -> NDArray[np.bool_]:
    """(N,) bool, which prompts a share of them holds out; neither their order nor other prompts decide it.

    Args:
        keys: (N,) uint64, keys of prompts.
        share: between 0 and 1.
    """
    return _uniform(keys, _HELD_OUT) < share


def part_of(keys: NDArray[np.uint64], selection: float) -> NDArray[np.int8]:
    """(N,) int8, the part of the validation split that each prompt is in, as a position in `PARTS`.

    Args:
        keys: (N,) uint64, keys of prompts.
        selection: share of prompts that choose checkpoints; of the rest, half calibrate and half are left untouched.
    """
    drawn = _uniform(keys, _PART)
    return np.where(drawn < selection, 0, np.where(drawn < (1 + selection) / 2, 1, 2)).astype(np.int8)


def _uniform(keys: NDArray[np.uint64], stream: int) -> NDArray[np.float64]:
    """Numbers in [0, 1) that keys stand for: the finaliser of SplitMix64 (Steele, Lea and Flood, 2014)."""
    mixed = np.asarray(keys, dtype=np.uint64) + np.uint64(stream)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed ^= mixed >> np.uint64(31)
    return (mixed >> np.uint64(11)).astype(np.float64) / 2.0**53
