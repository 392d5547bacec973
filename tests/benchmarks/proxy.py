"""The proxy model on real data: what benchmarks that run it have in common."""

from __future__ import annotations

from pathlib import Path

SHARED = Path("../shared")  # holds models/proxy-qwen3 and hub; benchmarks run from the repository's root


def proxy_settings(shared: Path, examples: int) -> list[str]:
    """`key=value` pairs: the proxy in float32 on so many training examples of each task and language, no others."""
    return [
        f"model.name={shared / 'models/proxy-qwen3'}",
        "model.dtype=float32",
        f"data.mirror={shared / 'hub'}",
        f"data.max_train_per_task={examples}",
        "data.max_validation_per_task=0",
    ]
