"""The documentation names every command, option and configuration key, and shows commands that exist."""

from __future__ import annotations

import re
from itertools import pairwise

import pytest

from logitbank import __main__ as commands
from logitbank.configs import Config, Decides, config_keys, decides, shipped_configs, value_of
from logitbank.configs.schema import MISSING
from logitbank.scripts import study
from tests.docs.pages import PAGES, ROOT, SCRIPTS, Line, headings, help_of, links, name_of, shown_commands, without_code

# of the console scripts, and of `logitbank` alone
COMMANDS = [
    *((name,) for name in SCRIPTS),
    *(("logitbank", name) for name in commands.GROUP.members if name not in SCRIPTS and name != "study"),
    *(("logitbank", "study", name) for name in study.GROUP.members),
]


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_command_and_option_is_documented(command: tuple[str, ...]) -> None:
    page, name = (ROOT / "docs/commands.md").read_text(), " ".join(command)
    level = max(2, len(command))  # of the heading
    section = re.search(rf"^##+ {name}\n(.*?)(?=^#{{2,{level}}} |\Z)", page, re.MULTILINE | re.DOTALL)
    assert section is not None, f"docs/commands.md has no section for {name}"
    text = section[1]
    usage, _, options = re.sub(r"\n\n    .*", "", help_of(*command)).partition("options:")  # not the examples
    for option in sorted(set(re.findall(r"--[a-z][a-z-]+", usage + options)) - {"--help"}):
        assert option in text, f"docs/commands.md does not mention {name} {option}"


def test_the_readme_names_every_console_script() -> None:
    for command in SCRIPTS:
        assert command in (ROOT / "README.md").read_text()


def test_every_configuration_key_is_documented_with_its_default_and_what_it_decides() -> None:
    page = (ROOT / "docs/configuration.md").read_text()
    rows = re.findall(r"^\| `([a-z_.0-9]+)` \| (.+?) \| ([a-z, –]+) \| .+ \|$", page, re.MULTILINE)
    assert [key for key, _, _ in rows] == list(dict.fromkeys(key for key, _, _ in rows))
    assert {key for key, _, _ in rows} == set(config_keys())
    for key, default, deciding in rows:
        value = value_of(Config(), key)
        assert default == ("must be given" if value == MISSING else f"`{_yaml(value)}`"), key
        decided = [name for name in ("store", "student", "score") if Decides[name.upper()] in decides(key)]
        assert deciding == (", ".join(decided) or "–"), key


def test_links_between_pages_lead_somewhere() -> None:
    for page in PAGES:
        for file, anchor in links(page):
            target = page.parent / file if file else page
            assert target.exists(), f"{name_of(page)} links to {file}"
            assert not anchor or anchor in headings(target), f"{name_of(page)} links to {file}#{anchor}"


@pytest.mark.parametrize("line", [line for line in shown_commands() if line.command], ids=lambda line: line.page)
def test_commands_that_pages_show_take_those_options_and_keys(line: Line) -> None:
    shown = help_of(*line.command)
    command = " ".join(line.command)
    configs = False
    for before, word in pairwise(["", *line.arguments]):
        if before == "--teacher":  # NAME=MODEL
            continue
        option = re.match(r"\[*(--[a-z-]+)", word)
        key = re.match(r"([a-z_]+(?:\.[a-z_0-9]+)*)=", word)
        if option:
            assert option[1] in shown, f"{line.page} shows {command} {option[1]}"
        elif key:
            assert key[1] in config_keys(), f"{line.page} shows {command} {key[1]}=…"
        elif configs and re.fullmatch(r"[a-z0-9.-]+", word):
            own = f"`{word}`" in (ROOT / line.page).read_text()  # a file that the page has the reader write
            assert word in shipped_configs() or own, f"{line.page} shows --config {word}"
        configs = option[1] == "--config" if option else configs


def test_paths_that_pages_name_exist() -> None:
    path = re.compile(r"`([a-z_.]+/[a-z0-9_./-]+\.(?:py|sh|yaml|sbatch|toml))`")
    named = {(name_of(page), found) for page in PAGES for found in path.findall(without_code(page.read_text()))}
    assert [pair for pair in sorted(named) if not (ROOT / pair[1]).exists()] == []


def test_make_targets_that_pages_name_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    shown = re.compile(r"`make ([a-z-]+)`|^make ([a-z-]+)", re.MULTILINE)
    named = {(name_of(page), "".join(found)) for page in PAGES for found in shown.findall(page.read_text())}
    assert [pair for pair in sorted(named) if pair[1] not in targets] == []


def _yaml(value: object) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, list):
        return f"[{', '.join(map(_yaml, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key}: {_yaml(item)}' for key, item in value.items())}}}"
    return str(value)
