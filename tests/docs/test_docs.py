"""The documentation names every command, option and configuration key, with its true default."""

from __future__ import annotations

import contextlib
import importlib
import io
import re
import tomllib
from pathlib import Path

import pytest

from logitbank.configs import Config, config_keys
from logitbank.configs.schema import MISSING

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]


def help_of(command: str) -> str:
    module, function = SCRIPTS[command].split(":")
    output = io.StringIO()
    with contextlib.redirect_stdout(output), pytest.raises(SystemExit):
        getattr(importlib.import_module(module), function)(["--help"])
    return output.getvalue()


@pytest.mark.parametrize("command", SCRIPTS)
def test_every_command_and_option_is_documented(command: str) -> None:
    page = (ROOT / "docs/commands.md").read_text()
    section = page.split(f"## {command}\n", 1)
    assert len(section) == 2, f"docs/commands.md has no section for {command}"
    text = section[1].split("\n## ", 1)[0]
    for option in sorted(set(re.findall(r"--[a-z][a-z-]+", help_of(command))) - {"--help"}):
        assert option in text, f"docs/commands.md does not mention {command} {option}"
    assert command in (ROOT / "README.md").read_text()


def test_every_configuration_key_is_documented_with_its_default() -> None:
    rows = dict(
        re.findall(
            r"^\| `([a-z_.0-9]+)` \| (.+?) \| .+ \|$", (ROOT / "docs/configuration.md").read_text(), re.MULTILINE
        )
    )
    assert set(rows) == set(config_keys())
    for key, documented in rows.items():
        value: object = Config()
        for part in key.split("."):
            value = getattr(value, part)
        assert documented == ("must be given" if value == MISSING else f"`{_yaml(value)}`"), key


def test_make_bench_runs_every_benchmark_as_a_module() -> None:
    run = set(re.findall(r"-m tests\.benchmarks\.(bench_\w+)", (ROOT / "Makefile").read_text()))
    assert run == {path.stem for path in (ROOT / "tests/benchmarks").glob("bench_*.py")}


def test_links_between_pages_lead_somewhere() -> None:
    for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\(([^)#:]+\.md)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def _yaml(value: object) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, list):
        return f"[{', '.join(map(_yaml, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key}: {_yaml(item)}' for key, item in value.items())}}}"
    return str(value)
