"""Where a process computes."""

from __future__ import annotations

from collections.abc import Mapping

import torch


def default_device() -> torch.device:
    """The first accelerator, else the CPU."""
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return accelerator or torch.device("cpu")


def local_device(environment: Mapping[str, str]) -> torch.device:
    """The device of this process: its own accelerator where a launcher started several on one machine."""
    device = default_device()
    if device.type != "cpu" and local_processes(environment) > 1:
        torch.accelerator.set_device_index(int(environment["LOCAL_RANK"]))
    return device


def local_processes(environment: Mapping[str, str]) -> int:
    """How many processes a launcher started on this machine."""
    return int(environment.get("LOCAL_WORLD_SIZE", 1))
