"""Real vLLM on the real proxy model; skipped where vLLM is not installed (`make test-vllm` installs it)."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True, scope="session")
def _vllm() -> None:
    """Engines in this process: they start in seconds once vLLM is imported."""
    pytest.importorskip("vllm", reason="vllm is not installed here; make test-vllm runs these")
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"


@pytest.fixture(scope="session")
def settings(shared: Path) -> list[str]:
    """The proxy model on all six tasks, few examples."""
    return [
        f"model.name={shared / 'models/proxy-qwen3'}",
        f"data.mirror={shared / 'hub'}",
        "tasks=[gsm8k,nli,pa,qa,ner,pos]",
        "languages=[en]",
        "data.max_train_per_task=4",
        "data.max_validation_per_task=1",
        "data.max_teacher_tokens=1024",
        "evaluation.max_prompt_tokens=1024",
        "teacher.top_k=64",
        "teacher.prefix_reuse=false",
        "store.encoding=exact",
        "store.shard_tokens=256",
        "store.chunk_tokens=256",
        "vllm.kv_cache_gib=0.5",
        "evaluation.max_samples=5",
    ]


@pytest.fixture(scope="session")
def transformers_store(settings: list[str], tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`transformers_store(*arguments)`: a store of the transformers engine, built in that engine's environment."""
    python = Path(os.environ.get("HF_PYTHON", ROOT / ".venv/bin/python"))
    if not python.exists():
        pytest.skip(f"the transformers teacher needs its own environment, and there is no {python} (HF_PYTHON)")

    def make(*arguments: str) -> Path:
        path = tmp_path_factory.mktemp("transformers") / "store"
        command = [str(python), "-m", "logitbank", "build-teacher-cache", "--store", str(path), *settings, *arguments]
        subprocess.run(command, check=True, cwd=ROOT, capture_output=True, timeout=600)
        return path

    return make
