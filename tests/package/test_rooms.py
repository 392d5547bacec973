"""What rooms take from each other is what they offer: the names and modules in a package's `__all__`."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[2] / "logitbank"
ROOMS = sorted(path.name for path in PACKAGE.iterdir() if path.is_symlink())


def imports(room: str) -> Iterator[tuple[str, str, list[str]]]:
    """File, module and names of every import from another room, those under TYPE_CHECKING and in functions included."""
    for path in sorted((PACKAGE / room).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module is not None and node.module.startswith("logitbank."):
                other = node.module.split(".")[1]
                if other in ROOMS and other != room:
                    place = f"{path.relative_to(PACKAGE)}:{node.lineno}"
                    yield place, node.module, [alias.name for alias in node.names]


def offered(package: Path) -> set[str]:
    """The names in a package's `__all__`."""
    for node in ast.parse((package / "__init__.py").read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and [t.id for t in node.targets if isinstance(t, ast.Name)] == ["__all__"]:
            return set(ast.literal_eval(node.value))
    return set()


def refusals(module: str, names: list[str]) -> Iterator[str]:
    """What of an import the other room does not offer."""
    for name in names:
        if name.startswith("_"):
            yield f"{name} is private to {module}"
    path = PACKAGE.joinpath(*module.split(".")[1:])
    if path.is_dir():
        for name in sorted(set(names) - offered(path)):
            yield f"{name} is not in the __all__ of {module}"
    elif path.name not in offered(path.parent):
        yield f"{path.name} is not in the __all__ of {module.rpartition('.')[0]}"


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_takes_what_others_offer(room: str) -> None:
    assert [f"{place}: {why}" for place, module, names in imports(room) for why in refusals(module, names)] == []


def test_what_is_not_offered_is_refused() -> None:
    assert list(refusals("logitbank.storage", ["TeacherStore", "_Hidden"])) == [
        "_Hidden is private to logitbank.storage",
        "_Hidden is not in the __all__ of logitbank.storage",
    ]
    assert list(refusals("logitbank.storage.nothing", ["x"])) == ["nothing is not in the __all__ of logitbank.storage"]
