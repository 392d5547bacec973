"""The programs in docs/python.md."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

PAGE = (Path(__file__).resolve().parents[2] / "docs/python.md").read_text(encoding="utf-8")


def lines_of(heading: str, changes: dict[str, str]) -> str:
    """The program below a heading, with what a test has to be smaller in."""
    section = PAGE.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    (program,) = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    for before, after in changes.items():
        assert before in program, before
        program = program.replace(before, after)
    return str(program)


def run(program: str, **given: Any) -> dict[str, Any]:
    names: dict[str, Any] = dict(given)
    exec(compile(program, "docs/python.md", "exec"), names)  # noqa: S102  the page's own lines
    return names
