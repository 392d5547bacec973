"""Fixtures that several test modules share."""

from __future__ import annotations

from pathlib import Path

import pytest

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session")
def shared() -> Path:
    """Real data, tokenizers and the proxy model that lie beside the checkout, where they do."""
    if not (SHARED / "models").is_dir():
        pytest.skip(f"real data and models are not at {SHARED}")
    return SHARED
