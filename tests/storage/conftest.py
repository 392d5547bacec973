"""What all tests of storage share."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True, scope="session")
def _leave_syncing_to_the_system() -> Iterator[None]:
    """No test cuts the power, and a killed process leaves what it wrote: waiting for the disk shows nothing."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield
