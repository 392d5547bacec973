"""Which number formats a device computes with at full speed."""

from __future__ import annotations

import torch


def has_fast_bfloat16(device: torch.device) -> bool:
    """Whether a device multiplies bfloat16 matrices in hardware.

    A CPU does with AVX512-BF16, AMX or the like. Without, PyTorch adds products one at a time: the gradient through
    an `lm_head` then takes 180 times as long as in float32.
    """
    if device.type != "cpu":
        return True
    return any(present is True for name, present in torch.cpu.get_capabilities().items() if "bf16" in name)
