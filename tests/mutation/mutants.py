"""Small wrong changes to a source file: what a test suite has to notice.

Python is changed where its syntax tree has something to turn round: comparisons, arithmetic, conditions, constants,
aggregates, seeds, statements that could be left out. SQL inside strings, which no Python mutator reaches, is changed by
patterns: joins, groupings, aggregates, comparisons, order.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass

COMPARISONS: dict[type[ast.AST], str] = {
    ast.Lt: "<=", ast.LtE: "<", ast.Gt: ">=", ast.GtE: ">", ast.Eq: "!=", ast.NotEq: "==",
    ast.In: "not in", ast.NotIn: "in", ast.Is: "is not", ast.IsNot: "is",
}  # fmt: skip
ARITHMETIC: dict[type[ast.AST], str] = {
    ast.Add: "-", ast.Sub: "+", ast.Mult: "/", ast.Div: "*", ast.FloorDiv: "*", ast.Mod: "*", ast.Pow: "*",
    ast.BitAnd: "|", ast.BitOr: "&",
}  # fmt: skip
NAMES = {
    "min": "max", "max": "min", "any": "all", "all": "any", "sum": "mean", "mean": "sum", "exp": "log", "log": "exp",
    "amax": "amin", "argmax": "argmin", "logsumexp": "amax", "minimum": "maximum", "maximum": "minimum",
    "log1p": "log", "ceil": "floor", "floor": "ceil", "startswith": "endswith", "sorted": "list",
}  # fmt: skip
SQL = (
    (r"\bLEFT JOIN\b", "JOIN"),
    (r"\bAND\b", "OR"),
    (r"\bOR\b", "AND"),
    (r"\bDISTINCT\b(?! FROM)", ""),
    (r"\bIS NOT DISTINCT FROM\b", "IS DISTINCT FROM"),
    (r"\bIS NOT NULL\b", "IS NULL"),
    (r"\bIS NULL\b", "IS NOT NULL"),
    (r"\bavg\(", "sum("),
    (r"\bsum\(", "avg("),
    (r"\bmax\(", "min("),
    (r"\bmin\(", "max("),
    (r"\bcount\(\*\)", "1"),
    (r"\bfirst_value\(", "last_value("),
    (r"\bstddev_samp\(", "stddev_pop("),
    (r"\bDESC\b", "ASC"),
    (r"\bASC\b", "DESC"),
    (r"<>", "="),
    (r"(?<![<>=!])=(?![=>])", "<>"),
    (r"(?<=\w) - (?=\w)", " + "),
    (r"\bUNION ALL\b", "EXCEPT"),
    (r"\bNOT\b(?! (?:NULL|DISTINCT))", ""),
    (r"(?<=BY )(\w+), ", ""),  # the first of what is grouped, ordered or partitioned by
    (r", (\w+)(?=\)\s*(?:AS|JOIN|WHERE|SELECT|$))", ""),  # the last of a list of columns
    (r"(?<=USING \()(\w+), ", ""),
)
IS_SQL = re.compile(r"\b(SELECT|GROUP BY|PARTITION BY|any_value|avg)\b")


@dataclass(frozen=True)
class Mutant:
    """One change.

    Attributes:
        line: where, from 1.
        before: the text that was replaced.
        after: what stands there instead.
        source: the whole file with the change.
    """

    line: int
    before: str
    after: str
    source: str

    def __str__(self) -> str:
        return f"{self.line}: {_short(self.before)} -> {_short(self.after)}"


def mutants_of(source: str) -> list[Mutant]:
    """Every change of a Python file that still compiles, in the order of its lines."""
    tree = ast.parse(source)
    starts = [0]
    for row in source.splitlines(keepends=True):
        starts.append(starts[-1] + len(row.encode()))
    content = source.encode()
    skipped = _skipped(tree)
    conditions = {id(n.test) for n in ast.walk(tree) if isinstance(n, (ast.If, ast.While, ast.IfExp))}
    found: dict[tuple[int, int, str], Mutant] = {}
    for node in ast.walk(tree):
        if id(node) in skipped or not isinstance(node, (ast.expr, ast.stmt)):
            continue
        assert node.end_lineno is not None
        assert node.end_col_offset is not None
        begin = starts[node.lineno - 1] + node.col_offset
        end = starts[node.end_lineno - 1] + node.end_col_offset
        text = content[begin:end].decode()
        for after in [*_changes(node, text), *([f"not ({text})"] if id(node) in conditions else [])]:
            changed = (content[:begin] + after.encode() + content[end:]).decode()
            if after != text and _compiles(changed):
                before, new = _difference(text, after)
                line = node.lineno + _line_of_difference(text, after)
                found.setdefault((begin, end, after), Mutant(line, before, new, changed))
    return sorted(found.values(), key=lambda mutant: mutant.line)


def _changes(node: ast.AST, text: str) -> Iterator[str]:
    match node:
        case ast.Compare(ops=[operator]) if type(operator) in COMPARISONS:
            yield f"{_of(node.left)} {COMPARISONS[type(operator)]} {_of(node.comparators[0])}"
        case ast.BinOp() if type(node.op) in ARITHMETIC and not _is_text(node):
            yield f"{_of(node.left)} {ARITHMETIC[type(node.op)]} {_of(node.right)}"
        case ast.BoolOp():
            other = " or " if isinstance(node.op, ast.And) else " and "
            yield other.join(f"({ast.unparse(value)})" for value in node.values)
        case ast.UnaryOp(op=ast.Not() | ast.USub() | ast.Invert()):
            yield _of(node.operand)
        case ast.Constant(value=bool(value)):
            yield str(not value)
        case ast.Constant(value=int(value) | float(value)):
            yield repr(value + 1)
        case ast.Constant(value=str()) | ast.JoinedStr() if IS_SQL.search(text):
            yield from _sql_changes(text)
        case ast.Attribute() if node.attr in NAMES:
            yield text[: -len(node.attr)] + NAMES[node.attr]
        case ast.Call(func=ast.Name(id=name)) if name in NAMES:
            yield NAMES[name] + text[len(name) :]
        case ast.Attribute() | ast.Name() if re.fullmatch(r"(.*\.)?\w*seed", text) and isinstance(node.ctx, ast.Load):
            yield "7"
        case ast.AugAssign() | ast.Continue() | ast.Break() | ast.Raise() if "NotImplementedError" not in text:
            yield "pass"
        case ast.Expr(value=ast.Call()):
            yield "pass"


def _sql_changes(text: str) -> Iterator[str]:
    for pattern, replacement in SQL:
        for match in re.finditer(pattern, text):
            yield text[: match.start()] + replacement + text[match.end() :]


def _skipped(tree: ast.AST) -> set[int]:
    """Nodes whose change no behaviour shows: docstrings, annotations, messages of errors, log lines, `__all__`."""
    roots: list[ast.AST] = []
    for node in ast.walk(tree):
        match node:
            case ast.Expr(value=ast.Constant(value=str())):
                roots.append(node)
            case ast.AnnAssign() | ast.arg() if node.annotation is not None:
                roots.append(node.annotation)
            case ast.FunctionDef() if node.returns is not None:
                roots.append(node.returns)
            case ast.Raise() if node.exc is not None:
                roots.append(node.exc)
            case ast.Call(func=ast.Attribute(value=ast.Name(id="logger"))) | ast.Assert():
                roots.append(node)
            case ast.keyword(arg="strict"):  # of `zip`: what it guards against cannot happen
                roots.append(node)
            case ast.Subscript(value=ast.Name(id="Callable" | "Mapping" | "Sequence" | "Registry")):
                roots.append(node)
    return {id(below) for root in roots for below in ast.walk(root)}


def _of(node: ast.expr) -> str:
    text = ast.unparse(node)
    return text if isinstance(node, (ast.Name, ast.Constant, ast.Attribute, ast.Call, ast.Subscript)) else f"({text})"


def _is_text(node: ast.BinOp) -> bool:
    sides = (node.left, node.right)
    return any(isinstance(side, ast.JoinedStr) or isinstance(getattr(side, "value", None), str) for side in sides)


def _compiles(source: str) -> bool:
    try:
        compile(source, "mutant", "exec")
    except (SyntaxError, ValueError):
        return False
    return True


def _difference(before: str, after: str) -> tuple[str, str]:
    """The parts in which two texts differ, with a word of what surrounds them."""
    start = 0
    while start < min(len(before), len(after)) and before[start] == after[start]:
        start += 1
    stop = 0
    while stop < min(len(before), len(after)) - start and before[-1 - stop] == after[-1 - stop]:
        stop += 1
    start, stop = max(0, start - 24), max(0, stop - 24)
    return before[start : len(before) - stop], after[start : len(after) - stop]


def _line_of_difference(before: str, after: str) -> int:
    start = 0
    while start < min(len(before), len(after)) and before[start] == after[start]:
        start += 1
    return before[:start].count("\n") if before.count("\n") == after.count("\n") else 0


def _short(text: str) -> str:
    flat = " ".join(text.split())
    return f"`{flat[:90]}{'…' if len(flat) > 90 else ''}`"
