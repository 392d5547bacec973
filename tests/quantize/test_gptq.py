"""GPTQ, and its weights opened by the transformers that everything else runs with."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import BertConfig, BertModel

from logitbank.models.pair_head import HEAD_WEIGHTS
from logitbank.preference import SEEN_PROMPTS
from logitbank.student_train.export import command
from tests.students import (
    class_logits,
    export_result,
    save_adapter,
    save_bfloat16_base,
    save_whole,
)

ROOT = Path(__file__).resolve().parents[2]
# Scores the training rows of a store in another environment.
SCORE = """
import sys
import numpy as np
from tests.students import class_logits
from pathlib import Path
np.save(sys.argv[2], class_logits(Path(sys.argv[1])))
"""


@pytest.fixture(scope="module")
def whole(label_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The mean of two students, with the head of a language model besides its own."""
    home = tmp_path_factory.mktemp("students")
    base = save_bfloat16_base(home / "base")
    students = [save_adapter(home / f"fold-{seed}", base, seed) for seed in range(2)]
    for student in students:
        (student / SEEN_PROMPTS).unlink()
    command.main(["--average", *map(str, students), "--output", str(home / "whole")])
    return home / "whole"


def quantised(whole: Path, label_store: Path, output: Path, *arguments: str) -> dict[str, Any]:
    """Quantise; what `export.json` says of it."""
    shared = ["--checkpoint", str(whole), "--quantize", "gptq", "--store", str(label_store), "--output", str(output)]
    command.main([*shared, *arguments])
    return export_result(output)


@pytest.fixture(scope="module")
def four_bits(whole: Path, label_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("exports") / "gptq"
    told = quantised(whole, label_store, output, "--bits", "4")
    assert told["quantization"] == {
        "method": "gptq",
        "program": told["quantization"]["program"],
        "bits": 4,
        "group_size": 16,
        "rows": 35,
    }
    assert told["quantization"]["program"].startswith("llmcompressor 0.")
    assert told["compared"]["rows"] == 11
    return output


def test_weights_lie_on_a_grid_of_four_bits(whole: Path, four_bits: Path) -> None:
    before, after = load_file(whole / "model.safetensors"), load_file(four_bits / "model.safetensors")
    for name, weight in before.items():
        stem = name.removesuffix("weight")
        if stem + "weight_packed" in after:
            scale = after[stem + "weight_scale"].repeat_interleave(16, dim=1)
            packed = after[stem + "weight_packed"]
            steps = torch.stack([packed >> (4 * place) & 15 for place in range(8)], dim=2).flatten(1) - 8
            error = (steps[:, : weight.shape[1]] * scale.float() - weight.float()).abs()
            assert error.max() > 0
            assert (error <= 2 * scale.float()).float().mean() > 0.99  # GPTQ moves weights to make up for others
    assert sum(name.endswith("weight_packed") for name in after) == 14
    assert torch.equal(after["model.embed_tokens.weight"], before["model.embed_tokens.weight"])
    assert (four_bits / HEAD_WEIGHTS).read_bytes() == (whole / HEAD_WEIGHTS).read_bytes()


def test_bits_say_how_far_probabilities_move(whole: Path, four_bits: Path, label_store: Path, tmp_path: Path) -> None:
    quantised(whole, label_store, tmp_path / "eight", "--bits", "8")
    expected = class_logits(whole)
    errors = [np.abs(class_logits(directory) - expected).max() for directory in (tmp_path / "eight", four_bits)]
    assert 0 < errors[0] < errors[1]
    assert errors[1] < 1


def test_the_other_environment_reads_the_same_logits(four_bits: Path, tmp_path: Path) -> None:
    python = Path(os.environ.get("HF_PYTHON", ROOT / ".venv/bin/python"))
    if not python.exists():
        pytest.skip(f"there is no {python} (HF_PYTHON)")
    command = [str(python), "-c", SCORE, str(four_bits), str(tmp_path / "theirs.npy")]
    subprocess.run(command, check=True, cwd=ROOT, capture_output=True, timeout=300)
    np.testing.assert_allclose(np.load(tmp_path / "theirs.npy"), class_logits(four_bits), atol=0.05)  # bfloat16 here


def test_rows_are_chosen_and_rounded_the_same_way_each_time(
    whole: Path, four_bits: Path, label_store: Path, tmp_path: Path
) -> None:
    quantised(whole, label_store, tmp_path / "again", "--bits", "4")
    before, after = (load_file(each / "model.safetensors") for each in (four_bits, tmp_path / "again"))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_the_rows_decide_the_weights(whole: Path, four_bits: Path, label_store: Path, tmp_path: Path) -> None:
    """Without rows, rounding to the nearest would be all: other rows give other weights."""
    quantised(whole, label_store, tmp_path / "few", "--bits", "4", "--samples", "2")
    before, after = (load_file(each / "model.safetensors") for each in (four_bits, tmp_path / "few"))
    assert any(not torch.equal(before[name], after[name]) for name in before if name.endswith("packed"))


def test_an_encoder_is_quantised(label_store: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    BertModel(BertConfig(vocab_size=300, **shape)).save_pretrained(tmp_path / "bert")
    student = save_whole(tmp_path / "student", tmp_path / "bert", 1)
    (student / SEEN_PROMPTS).unlink()
    assert quantised(student, label_store, tmp_path / "gptq", "--bits", "8")["compared"]["kl"] < 0.01


def test_what_llm_compressor_refuses_is_an_error_or_the_announced_fallback(
    whole: Path,
    label_store: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    def refuse(**arguments: Any) -> None:
        raise NotImplementedError("cannot trace\n this")

    monkeypatch.setattr("llmcompressor.oneshot", refuse)
    with pytest.raises(SystemExit):
        quantised(whole, label_store, tmp_path / "gptq")
    message = "cannot quantise Qwen3ForCausalLM (NotImplementedError: cannot trace this)"
    assert f"--quantize gptq: llm-compressor {message}; use --quantize int8, or add --fallback int8" in (
        capsys.readouterr().err
    )
    assert list(tmp_path.iterdir()) == []
    told = quantised(whole, label_store, tmp_path / "gptq", "--fallback", "int8")["quantization"]
    assert told == {"method": "int8", "instead_of": "gptq", "because": f"llm-compressor {message}"}
    assert f"warning: llm-compressor {message}; int8 is used instead" in caplog.text
