"""Wrong arguments of whole studies: one line, exit code 2, nothing begun."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from logitbank.__main__ import main
from logitbank.scripts import demo_world

STUDIES = (("study", "xtreme"), ("study", "gsm8k"), ("study", "lambda-sweep"), ("slurm",))


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that the command says."""
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("error: ")
    assert said.err.count("\n") == 1
    return said.err


@pytest.fixture(autouse=True)
def _nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    yield
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("command", STUDIES, ids=" ".join)
@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--config", "demo"], "the following arguments are required: --output"),
        (["--output"], "--output: expected one argument"),
        (["--output", "--config", "demo"], "--output: expected one argument"),
        (["--output", "out", "--config"], "--config: expected at least one argument"),
        (["--output", "out", "--config", "seed=1"], "--config: expected a value, got the override seed=1"),
        (["--output", "out", "--config", "demo", "--nothing"], "unrecognized arguments: --nothing"),
        (["--output", "out", "--config", "nowhere"], "--config: no file nowhere"),
        (["--output", "out", "--config", "demo", "training.step=3"], "did you mean training.max_steps?"),
    ],
)
def test_a_study_says_in_one_line_what_is_wrong(
    command: tuple[str, ...], arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    said = refused([*command, *arguments], capsys)
    assert says in said
    if "arguments" in says:
        assert said.endswith(f"; logitbank {' '.join(command)} --help lists all options\n")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (
            ["study", "xtreme", "--config", "demo", "--steps", "many"],
            "--steps: expected a whole number above 0, got many",
        ),
        (["study", "xtreme", "--config", "demo", "--train", "0"], "--train: expected a whole number above 0, got 0"),
        (["study", "xtreme"], "--config or --model: expected a model, got none"),
        (["study", "xtreme", "--config", "a/x.yaml", "b/x.yaml"], "expected models with different names, got x twice"),
        (["study", "gsm8k"], "--config or --model: expected a model, got none"),
        (["study", "gsm8k", "--samples", "1.5"], "--samples: expected a whole number above 0, got 1.5"),
        (["study", "gsm8k", "--model", "a", "b"], "override 'b': expected key=value"),
        (["study", "lambda-sweep", "--steps", "3"], "unrecognized arguments: --steps"),
        (["study", "lambda-sweep", "--config", "demo", "--lambda", "much"], "--lambda: invalid float value: 'much'"),
        (
            ["study", "lambda-sweep", "--config", "demo", "--lambda", "-1", "0"],
            "--lambda: expected numbers of at least 0, got -1.0 0.0",
        ),
        (
            ["study", "lambda-sweep", "--config", "demo", "--seed", "1", "1"],
            "--seed: expected each value once, got 1 1",
        ),
        (["study", "lambda-sweep", "--config", "demo", "--strategy", "fixed", "entropi"], "did you mean entropy?"),
        (["study", "lambda-sweep", "--config", "demo", "--store", "none"], "--store none: no teacher store there"),
        (["study", "incontext", "--seeds", "1"], "--seeds: expected at least 2"),
        (["study", "on-policy", "--seeds", "1"], "--seeds: expected at least 2"),
        (["study", "on-policy", "sampling.model=x"], "sampling.model: each round begins with the one before"),
        (["study", "incontext", "training.step=3"], "did you mean training.max_steps?"),
        (["slurm", "--teacher-rate", "0.0"], "--teacher-rate: expected a number above 0, got 0.0"),
        (["slurm", "--teacher-rate", "nan"], "--teacher-rate: expected a number above 0, got nan"),
        (["slurm", "--config", "demo"], "sbatch: not found"),
    ],
)
def test_values_are_checked_before_anything_runs(
    arguments: list[str], says: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert says in refused([*arguments, "--output", "out"], capsys)


@pytest.mark.parametrize(
    "command", [*STUDIES[:3], ("study", "incontext"), ("study", "on-policy"), ("demo",)], ids=" ".join
)
def test_a_place_that_cannot_be_made_is_refused(command: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    model = [] if command[-1] in ("incontext", "on-policy", "demo") else ["--config", "demo"]
    said = refused([*command, "--output", "/proc/x", *model], capsys)
    assert "--output: cannot create the directory /proc/x" in said


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--output", "/proc/x"], "--output: cannot create the directory /proc/x"),
        (["--output", "out", "--scheme", "9"], "--scheme: invalid choice: 9"),
    ],
)
def test_a_world_says_in_one_line_what_is_wrong(
    arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        demo_world.main(arguments)
    assert caught.value.code == 2
    said = capsys.readouterr().err
    assert says in said
    assert said.count("\n") == 1


@pytest.mark.parametrize("command", [*STUDIES, ("study", "incontext"), ("study", "on-policy")], ids=" ".join)
def test_help_shows_how_to_call_it(command: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main([*command, "--help"])
    assert not caught.value.code
    assert f"    logitbank {' '.join(command)} --output runs/" in capsys.readouterr().out


def test_overrides_stand_anywhere(capsys: pytest.CaptureFixture[str]) -> None:
    sweep = ["study", "lambda-sweep", "seed=3", "--output", "out", "--config", "demo", "training.max_steps=5"]
    grid = ["--lambda", "0", "0.5", "tasks=[nli]", "--strategy", "fixed", "--strategy", "entropy"]
    main([*sweep, *grid, "--dry-run"])
    students = ["finetuned-seed42", "distilled-fixed-lambda0.5-seed42", "distilled-entropy-lambda0.5-seed42"]
    assert capsys.readouterr().out.splitlines() == students
    assert "did you mean" in refused([*sweep, "task=[nli]", "--dry-run"], capsys)
