"""`export-model --quantize`: what works without llm-compressor, and what it says where that is missing."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import BertConfig, BertModel

from logitbank.models.pair_head import HEAD_WEIGHTS
from logitbank.preference import SEEN_PROMPTS, SeenPrompts
from logitbank.storage import LabelStore
from logitbank.student_train.export import command
from logitbank.student_train.export.comparison import chosen_rows
from logitbank.tasks.preference import PairPacker
from tests.storage import label_stores
from tests.students import (
    SETTINGS,
    class_logits,
    export_result,
    save_adapter,
    save_bfloat16_base,
    save_whole,
)
from tests.tiny import chat_tokenizer

pytest.importorskip("bitsandbytes", reason="the extra `quantization` is not installed")


@pytest.fixture(scope="module")
def student(label_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter on a bfloat16 base that left fold 0 out."""
    home = tmp_path_factory.mktemp("students")
    base = save_bfloat16_base(home / "base")
    adapter = save_adapter(home / "fold-0", base, 1)
    train = LabelStore.open(str(label_store)).train
    SeenPrompts.of(train.prompt_key[train.fold != 0]).write(adapter)
    return adapter


def to_eight_bits(checkpoint: Path, store: Path, output: Path) -> None:
    places = ["--checkpoint", str(checkpoint), "--store", str(store), "--output", str(output)]
    command.main([*places, "--quantize", "int8"])


@pytest.fixture(scope="module")
def eight_bits(student: Path, label_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("exports") / "int8"
    command.main(
        ["--checkpoint", str(student), "--quantize", "int8", "--store", str(label_store), "--output", str(output)]
    )
    return output


def test_eight_bits_are_smaller_and_say_nearly_the_same(student: Path, eight_bits: Path, tmp_path: Path) -> None:
    command.main(["--checkpoint", str(student), "--output", str(tmp_path / "whole")])
    whole, quantised = class_logits(tmp_path / "whole"), class_logits(eight_bits)
    assert 0 < np.abs(whole - quantised).max() < 0.2
    told = export_result(eight_bits)
    assert told["quantization"] == {"method": "int8"}
    assert told["bytes"] < told["bytes_before"] == sum(f.stat().st_size for f in (tmp_path / "whole").glob("*.safe*"))
    probabilities = [np.exp(each) / np.exp(each).sum(axis=1, keepdims=True) for each in (whole, quantised)]
    seen = SeenPrompts.read(student)
    assert seen is not None
    rows = np.isin([pair.prompt_key for pair in label_stores.TRAIN], seen.trained)
    kl = (probabilities[0] * np.log(probabilities[0] / probabilities[1])).sum(axis=1)[rows]
    assert told["compared"]["rows"] == rows.sum() == 28
    assert told["compared"]["kl"] == pytest.approx(kl.mean(), rel=0.02)  # batches of other lengths
    same = whole.argmax(axis=1) == quantised.argmax(axis=1)
    assert told["compared"]["same_first_choice"] == pytest.approx(same[rows].mean())


def test_what_is_not_quantised_stays_as_it_was(student: Path, eight_bits: Path) -> None:
    tensors = load_file(eight_bits / "model.safetensors")
    assert tensors["model.embed_tokens.weight"].dtype == tensors["model.norm.weight"].dtype == torch.bfloat16
    assert tensors["model.layers.0.mlp.up_proj.weight"].dtype == torch.int8
    assert (eight_bits / HEAD_WEIGHTS).read_bytes() == (student / HEAD_WEIGHTS).read_bytes()


def test_rows_are_those_that_the_model_has_learnt_from(student: Path, label_store: Path) -> None:
    opened = LabelStore.open(str(label_store))
    packer = PairPacker(chat_tokenizer(), max_tokens=SETTINGS.max_tokens)
    fold_of = {packer.pack(opened.train.pair(row)).ids.tobytes(): int(opened.train.fold[row]) for row in range(42)}
    seen = SeenPrompts.read(student)
    calibrating, compared = chosen_rows(opened, SETTINGS, student, 256, seen)
    assert {fold_of[pair.ids.tobytes()] for pair in calibrating} == {1, 2}
    texts = [{pair.ids.tobytes() for pair in part} for part in (calibrating, compared)]
    assert (len(texts[0]), len(texts[1]), texts[0] & texts[1]) == (21, 7, set())
    calibrating, compared = chosen_rows(opened, SETTINGS, student, 5, None)
    assert (len(calibrating), len(compared)) == (5, 11)


def test_a_store_of_other_rows_is_refused(
    student: Path, label_store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stranger = shutil.copytree(student, tmp_path / "stranger")
    SeenPrompts.of([1, 2, 3]).write(stranger)
    arguments = ["--checkpoint", str(stranger), "--quantize", "int8", "--store", str(label_store)]
    with pytest.raises(SystemExit):
        command.main([*arguments, "--output", str(tmp_path / "no")])
    assert "has 0 rows that the model was trained on" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["stranger"]


def test_a_model_that_says_not_what_it_saw_stays_silent(student: Path, label_store: Path, tmp_path: Path) -> None:
    silent = shutil.copytree(student, tmp_path / "silent")
    (silent / SEEN_PROMPTS).unlink()
    output = tmp_path / "int8"
    command.main(
        ["--checkpoint", str(silent), "--quantize", "int8", "--store", str(label_store), "--output", str(output)]
    )
    assert export_result(output)["compared"]["rows"] == 46
    assert not (output / SEEN_PROMPTS).exists()


def test_without_llm_compressor_gptq_says_where_it_is_or_what_is_done_instead(
    student: Path,
    label_store: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    arguments = ["--checkpoint", str(student), "--quantize", "gptq", "--store", str(label_store)]
    with pytest.raises(SystemExit):
        command.main([*arguments, "--output", str(tmp_path / "gptq")])
    assert "run make install-quantize, then the same command by .venv-quantize/bin/export-model" in (
        capsys.readouterr().err
    )
    assert list(tmp_path.iterdir()) == []
    command.main([*arguments, "--fallback", "int8", "--output", str(tmp_path / "gptq")])
    told = export_result(tmp_path / "gptq")["quantization"]
    assert (told["method"], told["instead_of"]) == ("int8", "gptq")
    assert "llm-compressor is not installed here" in told["because"]
    assert "warning: llm-compressor is not installed here" in caplog.text
    assert "int8 is used instead" in caplog.text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--group-size", "24"], "expected a divisor of 32, the inputs of model.layers.0.self_attn.q_proj, got 24"),
        (["--group-size", "32"], "expected a divisor of 48, the inputs of model.layers.0.mlp.down_proj, got 32"),
    ],
)
def test_groups_divide_every_layer(
    student: Path,
    label_store: Path,
    options: list[str],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = ["--checkpoint", str(student), "--quantize", "gptq", "--store", str(label_store), *options]
    with pytest.raises(SystemExit):
        command.main([*arguments, "--output", str(tmp_path / "no")])
    assert f"--group-size: {message}; use --group-size 16" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_what_is_quantised_is_not_exported_once_more(
    eight_bits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        command.main(["--checkpoint", str(eight_bits), "--output", str(tmp_path / "no")])
    assert "is already quantised (bitsandbytes); give the original model" in capsys.readouterr().err


def test_an_encoder_is_quantised_too(label_store: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    BertModel(BertConfig(vocab_size=300, **shape)).save_pretrained(tmp_path / "bert")
    student = save_whole(tmp_path / "student", tmp_path / "bert", 1)
    (student / SEEN_PROMPTS).unlink()
    output = tmp_path / "int8"
    command.main(
        ["--checkpoint", str(student), "--quantize", "int8", "--store", str(label_store), "--output", str(output)]
    )
    assert 0 < export_result(output)["compared"]["kl"] < 0.05
