"""What every command shares: wrong arguments and directories are one line and exit code 2."""

from __future__ import annotations

import errno
import os
import signal
import tomllib
import warnings
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest

from logitbank.__main__ import GROUP
from logitbank.command import CommandParser, make_directory, run_command
from logitbank.configs import ConfigError

ROOT = Path(__file__).resolve().parents[2]
COMMANDS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]


@pytest.mark.parametrize("command", COMMANDS)
def test_a_wrong_option_is_one_line(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    module, function = COMMANDS[command].split(":")
    with pytest.raises(SystemExit) as caught:
        getattr(import_module(module), function)(["--nonsense"])
    assert caught.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert said.endswith(f"; {command} --help lists all options\n")
    assert said.count("\n") == 1


def test_half_an_option_is_no_option(capsys: pytest.CaptureFixture[str]) -> None:
    parser = CommandParser(prog="x")
    parser.add_argument("--resume", action="store_true")
    with pytest.raises(SystemExit):
        parser.parse_args(["--resum"])
    assert "unrecognized arguments: --resum" in capsys.readouterr().err
    assert parser.parse_args(["--resume"]).resume


def refuse(number: int) -> None:
    raise OSError(number, os.strerror(number), "/somewhere/file")


def test_a_disk_that_refuses_is_one_line_and_a_bug_is_none(capsys: pytest.CaptureFixture[str]) -> None:
    for number, words in ((errno.ENOSPC, "No space left on device"), (errno.EACCES, "Permission denied")):
        with pytest.raises(SystemExit) as caught:
            run_command(lambda number=number: refuse(number))  # type: ignore[misc]
        assert caught.value.code == 2
        assert capsys.readouterr().err == f"error: /somewhere/file: {words}; finished work is kept\n"
    with pytest.raises(FileNotFoundError):
        run_command(lambda: refuse(errno.ENOENT))


def test_a_directory_is_made_or_refused(tmp_path: Path) -> None:
    make_directory("--output", tmp_path / "a/b")
    make_directory("--output", tmp_path / "a/b")
    assert (tmp_path / "a/b").is_dir()
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(ConfigError, match=r"--output: expected a directory, got the file .*file"):
        make_directory("--output", file)
    with pytest.raises(ConfigError, match=r"--output: cannot create the directory .*/x: Not a directory"):
        make_directory("--output", file / "x")
    with pytest.raises(ConfigError, match=r"--output: cannot create the directory /proc/x"):
        make_directory("--output", Path("/proc/x"))


def test_a_directory_that_cannot_be_written_into_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.access", lambda *arguments: False)  # as for anyone but root in a read-only directory
    with pytest.raises(ConfigError, match="is not writable; choose another"):
        make_directory("--output", tmp_path)


@pytest.fixture
def heeds_interrupts() -> Iterator[None]:
    """A shell's background job starts with Ctrl-C ignored, and so would these tests."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize(
    ("number", "word", "code"), [(signal.SIGINT, "Interrupted", 130), (signal.SIGTERM, "Terminated", 143)]
)
def test_a_signal_unwinds_and_promises_only_what_is_true(
    number: signal.Signals, word: str, code: int, capsys: pytest.CaptureFixture[str], heeds_interrupts: None
) -> None:
    cleaned = []

    def body() -> None:
        try:
            signal.raise_signal(number)
        finally:
            cleaned.append(number)

    for resumes, line in ((True, f"{word}; run the same command to resume"), (False, word)):
        with pytest.raises(SystemExit) as caught:
            run_command(body, resumes=resumes)
        assert caught.value.code == code
        assert capsys.readouterr().err == f"{line}\n"
    assert cleaned == [number, number]
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_a_body_that_kept_something_says_what(capsys: pytest.CaptureFixture[str]) -> None:
    def body() -> None:
        raise KeyboardInterrupt("Interrupted after step 12; run the same command to resume from it")

    with pytest.raises(SystemExit):
        run_command(body)
    assert capsys.readouterr().err == "Interrupted after step 12; run the same command to resume from it\n"


def test_warnings_of_libraries_do_not_reach_the_user(capsys: pytest.CaptureFixture[str]) -> None:
    def body() -> None:
        warnings.warn("this argument is deprecated", FutureWarning, stacklevel=1)

    with warnings.catch_warnings(record=True) as outside:
        warnings.simplefilter("always")
        run_command(body)
        assert not outside
        body()  # filters are the caller's own again
    assert len(outside) == 1


def test_a_command_inside_another_program_raises_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--condition: expected a name, got none"):
        GROUP.perform(["evaluate-model", "tasks=[chat]", "model.name=base", "--results", str(tmp_path)])
