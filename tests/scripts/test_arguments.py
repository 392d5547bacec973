"""Wrong arguments of the scripts: one line, exit code 2, nothing begun."""

from __future__ import annotations

import importlib
import subprocess
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
SHELL = ("xtreme.sh", "gsm8k.sh", "lambda_sweep.sh", "slurm/submit.sh")


def call(script: str, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([SCRIPTS / script, *arguments], cwd=folder, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("script", SHELL)
@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "--output: expected a directory, got none"),
        (["--output", "out"], "--config or --model: expected a name, got none"),
        (["--output"], "--output: expected a value, got none"),
        (["--output", "--config", "a"], "--output: expected a value, got none"),
        (["--output", "a", "b", "--config", "a"], "--output: expected one value, got a b"),
        (["--output=out", "--config", "a"], "--output: expected a value after a space, got --output=out"),
        (["--output", "out", "--config"], "--config: expected a value, got none"),
        (["--output", "out", "--config", "a", "--nothing"], "unknown option --nothing"),
        (["out", "--config", "a"], "expected an option or key=value, got out"),
    ],
)
def test_shell_scripts_say_in_one_line_what_is_wrong(
    script: str, arguments: list[str], says: str, tmp_path: Path
) -> None:
    done = call(script, tmp_path, *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"error: {says}; ")
    assert done.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("script", "arguments", "says"),
    [
        ("xtreme.sh", ["--steps", "many"], "--steps: expected a number above 0, got many"),
        ("xtreme.sh", ["--train", "0"], "--train: expected a number above 0, got 0"),
        ("gsm8k.sh", ["--samples", "1.5"], "--samples: expected a number above 0, got 1.5"),
        ("gsm8k.sh", ["--model", "a", "b"], "--model: expected one, got a b"),
        ("lambda_sweep.sh", ["--steps", "3"], "unknown option --steps"),
        ("slurm/submit.sh", ["--teacher-rate", "0.0"], "--teacher-rate: expected a number above 0, got 0.0"),
        ("slurm/submit.sh", ["--dry-run", "yes"], "--dry-run: expected no value, got yes"),
    ],
)
def test_values_are_checked_before_anything_runs(script: str, arguments: list[str], says: str, tmp_path: Path) -> None:
    done = call(script, tmp_path, "--output", "out", "--config", "a", *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"error: {says}; ")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("script", SHELL)
def test_help_is_the_comment_at_the_top(script: str, tmp_path: Path) -> None:
    done = call(script, tmp_path, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert f"scripts/{script} --output" in done.stdout
    assert "set -euo" not in done.stdout


@pytest.mark.parametrize(
    ("script", "arguments", "says"),
    [
        ("incontext_study", ["--output", "{tmp}/out", "--seeds", "1"], "--seeds: expected at least 2"),
        ("incontext_study", ["--output", "{tmp}/out", "training.step=3"], "did you mean training.max_steps?"),
        ("incontext_study", ["--output", "/proc/x"], "--output: cannot create the directory /proc/x"),
        ("demo_world", ["--output", "/proc/x"], "--output: cannot create the directory /proc/x"),
        ("demo_world", ["--output", "{tmp}/out", "--scheme", "9"], "--scheme: invalid choice: 9"),
        ("lambda_sweep", ["--lambda", "much"], "--lambda: invalid float value: 'much'"),
        ("lambda_sweep", ["--lambda", "-1", "0"], "--lambda: expected numbers of at least 0, got -1.0 0.0"),
        ("lambda_sweep", ["--seed", "1", "1"], "--seed: expected each value once, got 1 1"),
        ("lambda_sweep", ["--strategy", "fixed", "entropi"], "did you mean entropy?"),
        ("lambda_sweep", ["training.step=3", "--dry-run"], "did you mean training.max_steps?"),
        ("lambda_sweep", [], "--store {tmp}/none: no teacher store there"),
    ],
)
def test_python_scripts_say_in_one_line_what_is_wrong(
    script: str,
    arguments: list[str],
    says: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    given = [argument.format(tmp=tmp_path) for argument in arguments]
    if script == "lambda_sweep":
        given = ["--store", f"{tmp_path}/none", "--output", f"{tmp_path}/out", "--config", "demo", *given]
    with pytest.raises(SystemExit) as caught:
        importlib.import_module(script).main(given)
    assert caught.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert said.count("\n") == 1
    assert says.format(tmp=tmp_path) in said
    assert not list(tmp_path.iterdir())


def test_a_dry_sweep_lists_its_students(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    arguments = ["--store", "none", "--output", str(tmp_path / "out"), "--config", "demo", "--lambda", "0", "0.5"]
    importlib.import_module("lambda_sweep").main([*arguments, "--strategy", "fixed", "entropy", "--dry-run"])
    students = ["sft-seed42", "fewshot-fixed-lambda0.5-seed42", "fewshot-entropy-lambda0.5-seed42"]
    assert capsys.readouterr().out.splitlines() == students
    assert not list(tmp_path.iterdir())
