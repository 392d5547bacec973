"""scripts/xtreme.sh from empty directory to tables, with a tiny random model on real data."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from transformers import AutoTokenizer

ROOT = Path(__file__).resolve().parents[2]
CONDITIONS = ("base", "fewshot", "finetuned", "distilled", "control")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, shared: Path) -> Path:
    tokenizer = AutoTokenizer.from_pretrained(shared / "tokenizers/qwen3")
    torch.manual_seed(0)
    config = transformers.Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=8,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=1,
        num_key_value_heads=1,
        head_dim=8,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
    )
    path = tmp_path_factory.mktemp("models") / "tiny"
    transformers.Qwen3ForCausalLM(config).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def xtreme(model: Path, shared: Path, output: Path) -> str:
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    arguments = ["--output", str(output), "--model", str(model), "--train", "6", "--steps", "2", "--samples", "2"]
    settings = [
        f"data.mirror={shared / 'hub'}",
        "tasks=[nli,pos]",
        "languages=[en,hi]",
        "data.max_validation_per_task=2",
        "evaluation.max_new_tokens={nli: 2, pos: 3}",
        "training.global_batch_size=4",
        "training.num_workers=0",
        "teacher.top_k=8",
    ]
    run = subprocess.run(
        [str(ROOT / "scripts/xtreme.sh"), *arguments, *settings],
        cwd=output.parent,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    return run.stdout


@pytest.mark.slow
def test_five_conditions_fill_the_tables(model: Path, shared: Path, tmp_path: Path) -> None:
    """That a second run repeats nothing is each command's own affair, and tested there."""
    output = tmp_path / "study"
    printed = xtreme(model, shared, output)
    for condition in CONDITIONS:
        assert f"[4/4] {condition} pos/hi" in printed
    for condition in ("finetuned", "distilled", "control"):
        assert (output / "tiny" / condition / "final/adapter_config.json").exists()
    assert "## Summary per condition" in printed.split("== tables")[1]
