"""The λ sweep: which students, trained once, one table."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from logitbank.configs import load_config, shipped_configs
from logitbank.storage.results.rows import write_rows

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "lambda_sweep.py"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("lambda_sweep", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(__import__("sys").modules, "lambda_sweep", module)
    spec.loader.exec_module(module)
    return module


def test_every_combination_is_one_student_and_lambda_zero_one_per_seed(script: ModuleType) -> None:
    sweep = script.Sweep("s", Path("o"), [], views=["fewshot", "zeroshot"], lambdas=[0, 0.1], seeds=[1, 2])
    names = [student.name for student in script.students(sweep)]
    assert names == [
        "sft-seed1",
        "sft-seed2",
        "fewshot-fixed-lambda0.1-seed1",
        "fewshot-fixed-lambda0.1-seed2",
        "zeroshot-fixed-lambda0.1-seed1",
        "zeroshot-fixed-lambda0.1-seed2",
    ]


def test_a_strategy_with_lambdas_of_its_own_is_one_student_a_seed(script: ModuleType) -> None:
    sweep = script.Sweep("s", Path("o"), [], lambdas=[0.1, 0.2], strategies=["per_task*entropy", "entropy"])
    found = {student.name: student.overrides for student in script.students(sweep)}
    assert found == {
        "fewshot-per_task+entropy-seed42": ["distillation.strategy=per_task*entropy"],
        "fewshot-entropy-lambda0.1-seed42": ["distillation.lambda_distill=0.1", "distillation.strategy=entropy"],
        "fewshot-entropy-lambda0.2-seed42": ["distillation.lambda_distill=0.2", "distillation.strategy=entropy"],
    }


def test_an_interrupted_sweep_goes_on_with_the_student_it_was_stopped_in(
    script: ModuleType, small_store: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []

    def train(arguments: list[str]) -> None:
        assert "--resume" in arguments
        calls.append("train " + Path(arguments[arguments.index("--output") + 1]).name)
        if len(calls) == stop_at:
            raise KeyboardInterrupt

    def evaluate(arguments: list[str]) -> None:
        calls.append("evaluate " + Path(arguments[arguments.index("--checkpoint") + 1]).parent.name)

    monkeypatch.setattr(script, "train_student", train)
    monkeypatch.setattr(script, "evaluate_model", evaluate)
    grid = {"lambdas": [0, 0.1], "strategies": ["fixed", "entropy"], "seeds": [1]}
    sweep = script.Sweep(small_store.url, tmp_path, [], ["model.name=m"], **grid)
    names = ["sft-seed1", "fewshot-fixed-lambda0.1-seed1", "fewshot-entropy-lambda0.1-seed1"]
    whole = [f"{step} {name}" for name in names for step in ("train", "evaluate")]
    stop_at = 3
    with pytest.raises(KeyboardInterrupt):
        script.run_sweep(sweep)
    assert calls == whole[:3]
    calls, stop_at = [], 0
    script.run_sweep(sweep)  # each command skips what it has finished itself
    assert calls == whole


def test_a_sweep_trains_each_student_once_and_ends_in_one_table(
    script: ModuleType,
    small_store: SimpleNamespace,
    tiny_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    evaluated = []

    def evaluate(arguments: list[str]) -> None:
        given = dict(zip(arguments[::2], arguments[1::2], strict=False))
        assert (Path(given["--checkpoint"]) / "training.json").exists()
        name = Path(given["--checkpoint"]).parent.name
        if name in evaluated:
            return
        evaluated.append(name)
        seed = int(name.rpartition("seed")[2])
        row: dict[str, Any] = {"run": name, "model": "m", "condition": given["--condition"], "seed": seed}
        row |= {"language": "en", "split": "test", "method": "generate", "metric": "accuracy", "is_primary": True}
        values = {"nli": 0.5 + 0.1 * seed, "pos": 0.25}
        rows = [{**row, "task": task, "value": value} for task, value in values.items()]
        write_rows(given["--results"], "metrics", rows, name)

    monkeypatch.setattr(script, "evaluate_model", evaluate)
    arguments = ["--store", small_store.url, "--output", str(tmp_path), "--lambda", "0", "0.1", "--seed", "0", "1"]
    arguments += [f"model.name={tiny_model}", "tasks=[nli,pos]", "training.use_lora=false", "training.max_steps=2"]
    arguments += ["training.global_batch_size=4", "training.num_workers=0"]
    script.main(arguments)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "| condition | seeds | nli | pos | task_mean |"
    assert lines[2] == "| sft | 2 | 55.0 ± 7.1 | 25.0 ± 0.0 | 40.0 |"
    assert lines[3].startswith("| fewshot-fixed-lambda0.1 | 2 |")
    stamps = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/final/model.safetensors")}
    assert len(stamps) == len(evaluated) == 4
    script.main(arguments)
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps
    assert len(evaluated) == 4


def test_the_studys_experiments_are_shipped_as_configurations() -> None:
    assert {"sweep-ner", "sweep-pos", "warmup-then-sft"} <= set(shipped_configs())
    assert load_config(["llama-3.2-3b", "sweep-pos"]).tasks == ["pos"]
    warmup = load_config(["llama-3.2-3b", "warmup-then-sft"]).distillation
    assert (warmup.schedule, warmup.schedule_steps, warmup.lambda_distill) == ("warmup_then_sft", 100, 0.05)
