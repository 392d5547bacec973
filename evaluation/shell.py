"""A small SQL prompt over the result views."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator

from prompt_toolkit import PromptSession
from prompt_toolkit.completion import CompleteEvent, Completer, Completion
from prompt_toolkit.document import Document
from prompt_toolkit.lexers import PygmentsLexer
from pygments.lexers.sql import SqlLexer

from logitbank.errors import StoreError
from logitbank.evaluation.report.answers import write_answer
from logitbank.storage.results import Catalogue

HELP = """\
SQL ends with a semicolon and may span lines. Add views with CREATE VIEW name AS SELECT …;
views              list all views          columns VIEW    list the columns of one
format FORMAT      table markdown csv json
help               this text               exit            leave (also quit, Ctrl-D)
Tab completes views and columns."""
FORMATS = ("table", "markdown", "csv", "json")
LEAVE = ("exit", "quit")
COMMANDS = ("views", "columns", "format", "help", *LEAVE)
VIEWS = "SELECT table_name AS view FROM information_schema.tables ORDER BY 1"
COLUMNS = "SELECT table_name AS view, column_name FROM information_schema.columns ORDER BY 1, 2"
KEYWORDS = (
    *("SELECT", "DISTINCT", "FROM", "WHERE", "GROUP BY ALL", "ORDER BY", "LIMIT", "HAVING", "JOIN", "LEFT JOIN"),
    *("USING", "AND", "OR", "NOT", "IS NULL", "AS", "CASE", "WHEN", "THEN", "ELSE", "END", "BETWEEN", "DESC"),
    *("WITH", "UNION ALL", "PIVOT", "DESCRIBE", "SUMMARIZE", "CREATE VIEW", "count(*)", "avg", "sum", "min", "max"),
)


def run_shell(catalogue: Catalogue, read: Callable[[str], str] | None = None) -> None:
    """Read statements until the end of the input; an error is shown and does not end the shell.

    Args:
        catalogue: what to query.
        read: returns one line, given the prompt; raises EOFError at the end. Default: the terminal, with
            completion and history, or standard input where that is a pipe.
    """
    interactive = read is None and sys.stdin.isatty()
    if interactive:
        read = terminal_reader(catalogue)
        print("SQL on the result views; type help for help, exit to leave")
    read = read or (lambda _: input())
    pending, form = "", "table"
    while True:
        try:
            line = read("…> " if pending else "sql> ")
        except EOFError:
            break
        except KeyboardInterrupt:
            pending = ""
            continue
        if not pending and is_command(line):
            words = _words(line)
            if words[0] in LEAVE:
                return
            form = _command(catalogue, words, form)
            continue
        pending = f"{pending}\n{line}".strip()
        if pending.endswith(";"):
            _run(catalogue, pending, form)
            pending = ""
    if pending:
        _run(catalogue, pending, form)


def is_command(line: str) -> bool:
    """Whether a line is one of the shell's own commands, with or without a dot before and a semicolon after it."""
    return line.strip().startswith(".") or _words(line)[:1] in [[name] for name in COMMANDS]


def terminal_reader(catalogue: Catalogue) -> Callable[[str], str]:
    """Asks for a line in the terminal, with history, colours and completion."""
    session: PromptSession[str] = PromptSession(
        completer=SqlCompleter(catalogue), lexer=PygmentsLexer(SqlLexer), complete_while_typing=False
    )
    return lambda prompt: session.prompt(prompt)


class SqlCompleter(Completer):
    """Completes the word before the cursor, by `completions`."""

    def __init__(self, catalogue: Catalogue) -> None:
        self._catalogue = catalogue

    def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterator[Completion]:
        """What can complete that word."""
        before, word = document.text_before_cursor, document.get_word_before_cursor()
        for text, kind in completions(self._catalogue, before[: len(before) - len(word)], word):
            yield Completion(text, start_position=-len(word), display_meta=kind)


def completions(catalogue: Catalogue, before: str, word: str) -> list[tuple[str, str]]:
    """What may be typed instead of a word, each with what it is.

    Args:
        catalogue: whose views and columns.
        before: the line up to the word.
        word: what is typed of it; case does not matter.
    """
    found: list[tuple[str, str]] = []
    if not before.strip():
        found += [(name, "command") for name in COMMANDS]
    if before.split()[:1] == ["format"]:
        found += [(name, "format") for name in FORMATS]
    else:
        views: dict[str, list[str]] = {}
        for row in catalogue.rows(COLUMNS):
            views.setdefault(row["column_name"], []).append(row["view"])
        found += [(row["view"], "view") for row in catalogue.rows(VIEWS)]
        found += [(column, "column of " + ", ".join(of)) for column, of in sorted(views.items())]
        found += [(name, "SQL") for name in KEYWORDS]
    return [(text, kind) for text, kind in found if text.casefold().startswith(word.casefold())]


def _words(line: str) -> list[str]:
    return line.strip().removeprefix(".").rstrip("; ").split()


def _command(catalogue: Catalogue, words: list[str], form: str) -> str:
    if words == ["views"]:
        _run(catalogue, VIEWS, form)
    elif words[:1] == ["columns"] and len(words) == 2:
        _run(catalogue, f"SELECT column_name, column_type FROM (DESCRIBE {words[1]})", form)
    elif words[:1] == ["format"] and len(words) == 2 and words[1] in FORMATS:
        return words[1]
    else:
        print(HELP)
    return form


def _run(catalogue: Catalogue, sql: str, form: str) -> None:
    try:
        write_answer(catalogue.query(sql), form, None)
    except StoreError as error:
        print(f"error: {error}")
