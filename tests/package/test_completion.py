"""Completion as a shell does it: bash reads the script and is asked what follows."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from logitbank.__main__ import main
from logitbank.configs import shipped_configs
from logitbank.experiment import CONDITIONS, VIEWS

# Prints what bash offers for the words of a command line, the last of which is being typed.
ASK = r"""
source "$1"; shift
COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMP_LINE="$*"; COMP_POINT=${#COMP_LINE}
function=$(complete -p "$1" | sed -E 's/.*-F ([^ ]+).*/\1/')
"$function" "$1" "${@: -1}" "${@: -2:1}"
printf '%s\n' "${COMPREPLY[@]}"
"""


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context():
        from logitbank.completion import script as completion

        path = tmp_path_factory.mktemp("completion") / "logitbank.bash"
        path.write_text(completion("bash"))
        return path


def offered(script: Path, folder: Path, *words: str) -> list[str]:
    asked = subprocess.run(
        ["bash", "-c", ASK, "ask", str(script), *words], cwd=folder, capture_output=True, text=True, check=True
    )
    return asked.stdout.split()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["logitbank", "tr"], ["train-student"]),
        (["logitbank", "study", "la"], ["lambda-sweep"]),
        (["logitbank", "train-student", "--vi"], ["--view"]),
        (["train-student", "--vi"], ["--view"]),
        (["train-student", "--store", "x", "--view", "z"], ["zeroshot"]),
        (["build-teacher-cache", "--view", ""], [*VIEWS, "none"]),
        (["evaluate-model", "--condition", ""], list(CONDITIONS)),
        (["evaluate-model", "--config", "qwen3-1"], ["qwen3-1.7b"]),
        (["evaluate-model", "--config", "demo", "qwen3-1"], ["qwen3-1.7b"]),
        (["evaluate-model", "--config", "demo", "training.max_s"], ["training.max_steps="]),
        (["train-student", "--store", "x", "--resume", "lora.r"], ["lora.r="]),
        (["query-results", "--results", "x", "imp"], ["import"]),
        (["query-results", "--results", "x", "sql", "--for"], ["--format"]),
        (["query-results", "--results", "x", "sql", "--format", "par"], ["parquet"]),
        (["logitbank", "study", "lambda-sweep", "--strategy", "ent"], ["entropy"]),
        (["logitbank", "completion", ""], ["bash", "zsh"]),
    ],
    ids=lambda value: " ".join(value),
)
def test_bash_offers_what_follows(script: Path, tmp_path: Path, words: list[str], expected: list[str]) -> None:
    assert offered(script, tmp_path, *words) == expected


def test_bash_offers_files_beside_shipped_configurations(script: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").touch()
    (tmp_path / "runs").mkdir()
    found = offered(script, tmp_path, "logitbank", "evaluate-model", "--config", "")
    assert {"mine.yaml", *shipped_configs()} <= set(found)
    assert offered(script, tmp_path, "inspect-cache", "--store", "") == ["runs"]


def test_zsh_reads_its_script(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    main(["completion", "zsh"])
    printed = capsys.readouterr().out
    assert "#compdef logitbank" in printed
    assert "compdef _logitbank_alone build-teacher-cache evaluate-model" in printed
    if shutil.which("zsh"):
        (tmp_path / "script").write_text(printed)
        subprocess.run(["zsh", "-n", str(tmp_path / "script")], check=True)
