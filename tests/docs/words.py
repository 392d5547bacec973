"""What the style checks read: paragraphs of pages, and sentences of the code (messages, help, docstrings, comments)."""

from __future__ import annotations

import ast
import functools
import io
import re
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.docs.pages import FENCE, PAGES, ROOT, name_of

SENTENCE = 3  # words that a string literal has at least, to be one that people read
MODULES = sorted(path for room in (ROOT / "logitbank").iterdir() for path in [room, *room.resolve().rglob("*.py")])
MODULES = [path for path in MODULES if path.suffix == ".py"]


@dataclass(frozen=True)
class Words:
    """Some prose, and where it starts: a file and a line."""

    place: str
    text: str


def of_pages() -> Iterator[Words]:
    """Every paragraph, list and table of the pages; fenced code is left out."""
    for page in PAGES:
        text = FENCE.sub(lambda block: "\n" * block[0].count("\n"), page.read_text())
        for found in re.finditer(r"(?:[^\n]+\n?)+", text):
            yield Words(f"{name_of(page)}:{text.count(chr(10), 0, found.start()) + 1}", found[0])


def of_code(module: Path, *, name: str | None = None) -> Iterator[Words]:
    """Every sentence in a module's string literals, docstrings among them, and every run of comment lines."""
    source = module.read_text()
    name = name_of(module) if name is None else name
    for line, text in [*_literals(ast.parse(source)), *_comments(source)]:
        if len(re.findall(r"[A-Za-z]{2,}", text)) >= SENTENCE:
            yield Words(f"{name}:{line}", text)


def _literals(node: ast.AST) -> Iterator[tuple[int, str]]:
    """String literals; what an f-string puts in is three dots."""
    if isinstance(node, ast.JoinedStr):
        parts = [str(part.value) if isinstance(part, ast.Constant) else "…" for part in node.values]
        yield node.lineno, "".join(parts)
    elif isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.lineno, node.value
    for child in ast.iter_child_nodes(node):
        if not isinstance(node, ast.JoinedStr) or isinstance(child, ast.FormattedValue):
            yield from _literals(child)


def _comments(source: str) -> Iterator[tuple[int, str]]:
    first, run = 0, list[str]()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            line, text = token.start[0], token.string.lstrip("# ")
            if token.line[: token.start[1]].strip():
                yield line, text
                continue
            if line != first + len(run):
                yield first, "\n".join(run)
                first, run = line, []
            run.append(text)
    yield first, "\n".join(run)


@functools.cache
def all_words() -> tuple[Words, ...]:
    return (*of_pages(), *(words for module in MODULES for words in of_code(module)))
