"""`train-student` as a user calls it: what goes wrong is one line and exit code 2."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import transformers

from logitbank.experiment import TrainingRecord
from logitbank.student_train.train_command import main
from logitbank.tasks.prompts import PromptEncoder
from tests import processes

ROOT = Path(__file__).resolve().parents[2]
SMALL = [
    "tasks=[nli,pos]",
    "training.use_lora=false",
    "training.precision=fp32",
    "training.max_steps=2",
    "training.global_batch_size=4",
    "training.micro_batch_size=2",
    "training.num_workers=0",
]


def command(tiny_model: Path, url: str, output: Path, *more: str, view: str = "fewshot") -> list[str]:
    options = ["--store", url, "--view", view, "--output", str(output), *[m for m in more if m.startswith("--")]]
    overrides = [m for m in more if not m.startswith("--")]
    return [*options, f"model.name={tiny_model}", *SMALL, *overrides]


def refused(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> str:
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert len(lines) == 1
    return lines[0]


def test_the_command_as_a_process(tiny_model: Path, small_store: SimpleNamespace, tmp_path: Path) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    module = [sys.executable, "-m", "logitbank", "train-student"]
    arguments = command(tiny_model, small_store.url, tmp_path / "a run")  # of this name are result files too
    done = subprocess.run([*module, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "step 2/2  loss" in done.stderr
    assert (tmp_path / "a run" / "final" / "model.safetensors").exists()
    failed = processes.run("train-student", *command(tiny_model, str(tmp_path / "nowhere"), tmp_path / "other"))
    assert failed.returncode == 2
    assert failed.stderr.count("\n") == 1
    assert failed.stderr.startswith("error: --store")


@pytest.mark.parametrize(
    ("changes", "view", "says"),
    [
        (["distillation.n_top_logits=17"], "fewshot", "distillation.n_top_logits: expected at most 16"),
        ([], "shuffled_answers", "--view shuffled_answers"),
        (["tasks=[nli,qa]"], "none", "tasks: the store at"),
        (["training.global_batch_size=5"], "none", "training.global_batch_size"),
        (["training.leaning_rate=1"], "none", "training.learning_rate"),
        (["model.name=./no/such/model"], "none", "model.name"),
        (["training.use_lora=true", "lora.target_modules=[no_proj]"], "none", "lora.target_modules"),
        (["lora.load_in_4bit=true"], "none", "lora.load_in_4bit: only a frozen base"),
        (
            ["distillation.strategy=meta", "distillation.lambda_distill=2"],
            "fewshot",
            "distillation.lambda_distill: expected a number above 0 and below 1",
        ),
        (["training.wandb_project=mine"], "none", "training.wandb_project: the package wandb is not installed"),
    ],
)
def test_what_does_not_fit_is_refused(
    capsys: pytest.CaptureFixture[str],
    tiny_model: Path,
    small_store: SimpleNamespace,
    tmp_path: Path,
    changes: list[str],
    view: str,
    says: str,
) -> None:
    arguments = command(tiny_model, small_store.url, tmp_path / "run", *changes, view=view)
    assert says in refused(capsys, arguments)
    assert not (tmp_path / "run" / "final").exists()


def test_an_adapter_learns_on_a_base_of_4_bits(
    tiny_model: Path, small_store: SimpleNamespace, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    changes = ["training.use_lora=true", "lora.load_in_4bit=true", "training.warmup_steps=0"]
    main(command(tiny_model, small_store.url, tmp_path / "run", *changes))
    weights = safetensors.numpy.load_file(tmp_path / "run/final/adapter_model.safetensors")
    assert all(np.abs(value).max() > 0 for value in weights.values())  # B starts at zero
    assert not [record for record in caplog.records if record.name.startswith("bitsandbytes")]


def test_a_half_built_view_is_refused(
    capsys: pytest.CaptureFixture[str], tiny_model: Path, small_store: SimpleNamespace, tmp_path: Path
) -> None:
    broken = tmp_path / "half.zarr"
    shutil.copytree(small_store.url, broken)
    manifests = sorted((broken / "manifest" / "fewshot").glob("*"))
    next(path for path in manifests if path.name != "view.json").unlink()
    assert "not written yet" in refused(capsys, command(tiny_model, str(broken), tmp_path / "run"))
    main(command(tiny_model, str(broken), tmp_path / "run", view="zeroshot"))  # the other view is whole


def test_another_tokenizer_is_refused_where_an_id_in_the_store_is_another_token(
    capsys: pytest.CaptureFixture[str], tiny_model: Path, small_store: SimpleNamespace, tmp_path: Path
) -> None:
    other = tmp_path / "other-model"
    shutil.copytree(tiny_model, other)
    saved = json.loads((other / "tokenizer.json").read_text())
    words = saved["model"]["vocab"]
    words["w5"], words["w6"] = words["w6"], words["w5"]
    (other / "tokenizer.json").write_text(json.dumps(saved))
    line = refused(capsys, command(other, small_store.url, tmp_path / "run"))
    assert f"model.name: id 7 is 'w5' for {tiny_model} and 'w6' for {other}, whose 'w5' is id 8" in line


def test_a_store_of_another_chat_template_is_refused(
    capsys: pytest.CaptureFixture[str],
    tiny_model: Path,
    make_store: Callable[..., SimpleNamespace],
    tokenizer: Any,
    tmp_path: Path,
) -> None:
    own = PromptEncoder(tokenizer).template_hash
    stores = {template: make_store(top_k=4, identity={"template": template}) for template in (own, "0123456789abcdef")}
    line = refused(capsys, command(tiny_model, stores["0123456789abcdef"].url, tmp_path / "run"))
    assert f"model.name: the chat template of {tiny_model} is not the template that wrote" in line
    assert f"(hash {own[:12]} instead of 0123456789ab)" in line
    main(command(tiny_model, stores[own].url, tmp_path / "run"))
    record = TrainingRecord.read(tmp_path / "run" / "final")
    assert record is not None
    assert record.template == own
    assert (record.teacher, record.top_k) == ("tiny", 4)
    assert record.training_set == stores[own].store.info.identity["examples"]["hash"]


def test_a_model_with_too_few_rows_is_refused(
    capsys: pytest.CaptureFixture[str], tiny_model: Path, small_store: SimpleNamespace, tmp_path: Path
) -> None:
    other = tmp_path / "small-model"
    shutil.copytree(tiny_model, other)
    model = transformers.AutoModelForCausalLM.from_pretrained(tiny_model)
    model.resize_token_embeddings(90)
    model.save_pretrained(other)
    assert "90 lm_head rows" in refused(capsys, command(other, small_store.url, tmp_path / "run"))


def test_a_run_is_never_overwritten(
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    tiny_model: Path,
    small_store: SimpleNamespace,
    tmp_path: Path,
) -> None:
    caplog.set_level("INFO")
    arguments = command(tiny_model, small_store.url, tmp_path / "run")
    main(arguments)
    weights = (tmp_path / "run" / "final" / "model.safetensors").stat().st_mtime_ns
    for same in (arguments, [*arguments, "--resume"]):
        caplog.clear()
        main(same)
        assert "done already" in caplog.text
    for changed, says in ((["training.max_steps=3"], "training.max_steps: "), (["--results=x", "seed=3"], "seed: ")):
        assert says in refused(capsys, [*arguments, *changed]), "it is not what was trained"
    assert "--view: " in refused(capsys, command(tiny_model, "gone", tmp_path / "run", view="none"))
    (tmp_path / "run" / "final" / "training.json").unlink()
    assert "has no training.json; choose another --output" in refused(capsys, arguments)
    assert (tmp_path / "run" / "final" / "model.safetensors").stat().st_mtime_ns == weights


@pytest.mark.parametrize("option", ["--output", "--results"])
def test_a_place_that_cannot_be_written_is_refused_before_the_first_step(
    option: str, capsys: pytest.CaptureFixture[str], tiny_model: Path, small_store: SimpleNamespace, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    arguments = command(tiny_model, small_store.url, tmp_path / "run", f"{option}={tmp_path}/file/below")
    assert f"{option}: cannot create the directory {tmp_path}/file/below: Not a directory" in refused(capsys, arguments)
    assert [path.name for path in tmp_path.iterdir() if path.name != "results"] == ["file"]


def test_a_view_is_mandatory(configure: Callable[..., object], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["--store", "x", "--output", "y"])
    assert stop.value.code == 2
    assert "--view" in capsys.readouterr().err


def test_a_model_that_reads_less_than_the_store_holds_is_refused(
    tiny_model: Path, small_store: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    short = tmp_path / "short"
    shutil.copytree(tiny_model, short)
    config = json.loads((short / "config.json").read_text())
    (short / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 9}))
    line = refused(capsys, command(short, small_store.url, tmp_path / "run"))
    assert "reads at most 9 tokens, but the store at" in line
    assert "data.max_student_tokens=9" in line
    assert not (tmp_path / "run").exists()
