"""Which number formats a device computes with at full speed, and what a model is opened in."""

from __future__ import annotations

import logging
import os

import torch

logger = logging.getLogger(__name__)

_said: set[str] = set()  # keys of which this process has told its user already


def has_fast_bfloat16(device: torch.device) -> bool:
    """Whether a device multiplies bfloat16 matrices in hardware.

    A CPU does with AVX512-BF16, AMX or the like. Without, PyTorch adds products one at a time: the gradient through
    an `lm_head` then takes 180 times as long as in float32.
    """
    if device.type != "cpu":
        return True
    return any(present is True for name, present in torch.cpu.get_capabilities().items() if "bf16" in name)


def opened_dtype(key: str, name: str, device: torch.device) -> str:
    """The dtype that a model is opened in, which its identity records.

    Args:
        key: the configuration key that asks for it, for the message if it is not available.
        name: `float32`, `bfloat16`, `float16`, or `auto`: as the checkpoint says, but float32 on a CPU.
        device: where the model goes.

    Returns:
        `name`, or `float32` for `auto` on a CPU and for `bfloat16` on one that has no fast one; said once.
    """
    if device.type == "cpu" and name == "auto":
        return "float32"
    if name != "bfloat16" or has_fast_bfloat16(device):
        return name
    if key not in _said and os.environ.get("RANK", "0") == "0":
        _said.add(key)
        logger.info("%s: this CPU has no fast bfloat16, so the model is loaded in float32", key)
    return "float32"
