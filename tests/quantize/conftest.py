"""Real llm-compressor on tiny models; skipped where it is not installed (`make test-quantize` installs it)."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True, scope="session")
def _llm_compressor() -> None:
    pytest.importorskip("llmcompressor", reason="llm-compressor is not installed here; make test-quantize runs these")
