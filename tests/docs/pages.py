"""What the documentation tests read: pages, code blocks, links, headings, and the help of commands."""

from __future__ import annotations

import contextlib
import functools
import importlib
import io
import itertools
import re
import shlex
import tomllib
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
SCRIPTS: dict[str, str] = PROJECT["project"]["scripts"]
TOP = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "examples/README.md")]
DOCS = sorted((ROOT / "docs").rglob("*.md"))
PAGES = [*TOP, *DOCS]
FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Line:
    """A command line that a page shows: its page, and its words."""

    page: str
    words: tuple[str, ...]

    @property
    def command(self) -> tuple[str, ...]:
        """The command of ours that it runs, a console script or `logitbank` and what follows; () for any other."""
        words = self._started
        if words[:1] == ["logitbank"] and len(words) > 1:
            return tuple(itertools.takewhile(re.compile(r"[a-z][a-z0-9-]+").fullmatch, words))
        return tuple(words[:1]) if words and words[0] in SCRIPTS else ()

    @property
    def arguments(self) -> list[str]:
        """What follows the command."""
        return self._started[len(self.command) :]

    @property
    def _started(self) -> list[str]:
        words = list(self.words)
        return words[words.index("-m") + 1 :] if words[:2] == ["accelerate", "launch"] else words


def name_of(page: Path) -> str:
    """A page as messages call it."""
    return str(page.relative_to(ROOT))


def without_code(text: str) -> str:
    """Prose and tables of a page, without its fenced blocks."""
    return FENCE.sub("", text)


def headings(page: Path) -> set[str]:
    """Anchors of a page's headings, as the site and code hosts make them."""
    found = re.findall(r"^#{1,6} (.+)$", without_code(page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in found}


def links(page: Path) -> list[tuple[str, str]]:
    """(file, anchor) of every link of a page that is no URL; an empty file is the page itself."""
    targets = re.findall(r"\]\(([^)\s]+)\)", without_code(page.read_text()))
    return [(target.partition("#")[0], target.partition("#")[2]) for target in targets if "://" not in target]


def shown_commands() -> list[Line]:
    """The command lines in the pages' code blocks, comments and continued lines resolved."""
    lines = []
    for page in PAGES:
        for language, block in FENCE.findall(page.read_text()):
            if language not in ("", "bash", "sh", "console"):
                continue
            for text in re.sub(r"\\\n\s*", " ", block).splitlines():
                with contextlib.suppress(ValueError):  # no shell
                    words = shlex.split(text, comments=True)
                    while words and re.fullmatch(r"[A-Z_]+=\S*", words[0]):
                        words = words[1:]
                    if words:
                        lines.append(Line(name_of(page), tuple(words)))
    return lines


@functools.cache
def help_of(*command: str) -> str:
    """What a command prints with `--help`, that of the commands below it included."""
    text = _help(*command)
    choices = re.search(r"\{([a-z0-9,-]+)\}\s*\.\.\.", text)
    below = choices[1].split(",") if choices else []
    return "\n".join([text, *(_help(*command, name) for name in below)])


def _help(*command: str) -> str:
    module, function = SCRIPTS[command[0]].split(":")
    output = io.StringIO()
    with contextlib.redirect_stdout(output), pytest.raises(SystemExit) as ended:
        getattr(importlib.import_module(module), function)([*command[1:], "--help"])
    assert ended.value.code in (0, None), f"there is no command {' '.join(command)}"
    return output.getvalue()
