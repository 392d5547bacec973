"""A small SQL prompt over the result views."""

from __future__ import annotations

import sys
from collections.abc import Callable

from logitbank.errors import StoreError
from logitbank.evaluation.report.render import write_answer
from logitbank.storage.results.catalogue import Catalogue

HELP = """\
SQL ends with a semicolon and may span lines. Views of your own: CREATE VIEW name AS SELECT …;
.views            all views          .columns VIEW   columns of one
.format FORMAT    table markdown csv json
.quit             or Ctrl-D"""
FORMATS = ("table", "markdown", "csv", "json")


def run_shell(catalogue: Catalogue, read: Callable[[str], str] = input) -> None:
    """Read statements until the end of the input; errors are shown and the shell goes on.

    Args:
        catalogue: what to query.
        read: asks for one line, given the prompt; raises EOFError at the end.
    """
    interactive = sys.stdin.isatty()
    if interactive:
        import readline  # noqa: F401  (its import gives `input` a history and line editing)

        print("SQL over the result views; .help for help")
    pending, form = "", "table"
    while True:
        try:
            line = read(("…> " if pending else "sql> ") if interactive else "")
        except EOFError:
            break
        except KeyboardInterrupt:
            pending = ""
            print()
            continue
        if not pending and line.strip().startswith("."):
            if line.strip() in (".quit", ".exit"):
                return
            form = _command(catalogue, line.split(), form)
            continue
        pending = f"{pending}\n{line}".strip()
        if pending.endswith(";"):
            _run(catalogue, pending, form)
            pending = ""
    if pending:
        _run(catalogue, pending, form)


def _command(catalogue: Catalogue, words: list[str], form: str) -> str:
    if words[0] == ".views":
        _run(catalogue, "SELECT table_name AS view FROM information_schema.tables ORDER BY 1", form)
    elif words[0] == ".columns" and len(words) == 2:
        _run(catalogue, f"SELECT column_name, column_type FROM (DESCRIBE {words[1]})", form)
    elif words[0] == ".format" and len(words) == 2 and words[1] in FORMATS:
        return words[1]
    else:
        print(HELP)
    return form


def _run(catalogue: Catalogue, sql: str, form: str) -> None:
    try:
        write_answer(catalogue.query(sql), form, None)
    except StoreError as error:
        print(f"error: {error}")
