"""Tasks that users bring: `./reviews.py:Reviews`, `mypackage.tasks:Reviews`, or a name that a package installs.

A task's own `name` is what stores, tables, example ids and the keys of maps call it; where it was found is not part of
that. What it does is: the hash of its source is part of what a score is a score of.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib
import importlib.util
import inspect
import re
import shlex
import sys
import traceback
from collections.abc import Iterable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any, cast, get_args, get_origin, get_type_hints

from logitbank.errors import TaskError
from logitbank.registry import TASKS, package_of
from logitbank.tasks.common import UNDETERMINED, ReadsFiles, Source, Task

NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")  # occurs in file names, example ids and dotted keys
LANGUAGE = re.compile(r"[a-z]{2,3}")
_WORDS = {str: "a text", int: "a whole number", Source: "a Source"}
_modules: dict[Path, ModuleType] = {}  # by file: one reference is one task, however often it is opened
_homes: dict[str, list[Path]] = {}  # by name: the file that a task was opened from, which may only make an instance


def is_reference(text: str) -> bool:
    """Whether an item of `tasks` says where a task is, instead of its name."""
    return ":" in text or "/" in text or text.endswith(".py")


def open_tasks(asked: Sequence[str]) -> list[str]:
    """The names of the tasks that `tasks` asks for; those that are named by file or module join `TASKS`.

    Args:
        asked: names, and references `FILE.py:NAME` or `MODULE:NAME`.

    Raises:
        TaskError: a reference that cannot be opened, or is not a task; the name of another task.
    """
    return [_open(item) if is_reference(item) else item for item in asked]


def open_installed(name: str, point: metadata.EntryPoint) -> Task:
    """The task of an installed package's entry point.

    Raises:
        TaskError: it cannot be imported, is not a task, or has another name than its entry point.
    """
    place = f"tasks: {name} of the package {package_of(point)}"
    task = _task_of(_import_module(point.module, place), point.attr, place)
    if task.name != name:
        raise TaskError(f"{place}: expected a task with that name, got one named {task.name!r}")
    return task


def languages_of(names: Iterable[str]) -> list[str]:
    """The languages of those of the named tasks that are not the package's own; names that are unknown have none."""
    outside = [TASKS[name] for name in names if name in TASKS and name not in TASKS.shipped]
    own = (language for task in outside for language in task.languages if language != UNDETERMINED)
    return list(dict.fromkeys(own))


def is_outside(task: Task) -> bool:
    """Whether a task is none of those that the package brings."""
    return not _is_ours(type(task).__module__)


def folder_of(task: Task) -> Path:
    """Where a task's own files are looked for: the folder of the file that defines its class."""
    file = getattr(sys.modules[type(task).__module__], "__file__", None)
    return Path.cwd() if file is None else Path(file).parent


def source_hash(task: Task) -> str | None:
    """SHA-256, 16 digits, of the files that define a task, its class and what that inherits; None for our own.

    Files of this package and of Python's library do not count: their versions are recorded beside every score.
    """
    if not is_outside(task):
        return None
    digest = hashlib.sha256()
    for file in dict.fromkeys([*_homes.get(task.name, ()), *_source_files(type(task))]):
        digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()[:16]


def source_hashes(names: Iterable[str]) -> dict[str, str]:
    """Name and source of those of the named tasks that are not the package's own."""
    found = {name: source_hash(TASKS[name]) for name in names if name not in TASKS.shipped}
    return {name: digest for name, digest in found.items() if digest is not None}


def _open(reference: str) -> str:
    """The name of the task at a reference, which joins `TASKS`."""
    place, _, attribute = reference.rpartition(":")
    if not place or not attribute:
        raise TaskError(f"tasks: expected FILE.py:NAME, for example ./reviews.py:Reviews, got {reference!r}")
    where = f"tasks: {shlex.quote(reference)}"
    if place.endswith(".py") or "/" in place:
        module = _load_file(place, where)
    else:
        module = _import_module(place, where)
    task = _task_of(module, attribute, where)
    if task.name in TASKS and TASKS[task.name] is not task:
        other = TASKS[task.name]
        home = "of logitbank" if not is_outside(other) else f"in {sys.modules[type(other).__module__].__file__}"
        raise TaskError(f"{where}: its name is {task.name!r}, as is that of a task {home}; give it another name")
    if task.name not in TASKS:
        TASKS.register(task.name, task)
        _homes[task.name] = _file_of(module.__name__)
    return task.name


def _load_file(place: str, where: str) -> ModuleType:
    """The module in a file, made once."""
    path = Path(place).expanduser().resolve()
    if not path.is_file():
        raise TaskError(f"{where}: no file {shlex.quote(str(path))}; relative paths start in the working directory")
    if path in _modules:
        return _modules[path]
    digest = hashlib.sha256(str(path).encode()).hexdigest()[:12]
    name = f"logitbank_task_{re.sub(r'[^A-Za-z0-9_]', '_', path.stem)}_{digest}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise TaskError(f"{where}: expected a Python file, got {shlex.quote(str(path))}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickle look their module up
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise TaskError(f"{where}: cannot be imported: {_what_happened(error, path)}") from error
    _modules[path] = module
    return module


def _import_module(name: str, where: str) -> ModuleType:
    if not all(part.isidentifier() for part in name.split(".")):
        raise TaskError(f"{where}: expected FILE.py:NAME or MODULE:NAME, got {name!r} before the colon")
    try:
        return importlib.import_module(name)
    except (Exception, SystemExit) as error:
        if isinstance(error, ModuleNotFoundError) and (name == error.name or name.startswith(f"{error.name}.")):
            file = f"./{name.replace('.', '/')}.py:NAME"
            raise TaskError(f"{where}: no module {error.name}; install its package, or name a file: {file}") from None
        raise TaskError(f"{where}: cannot be imported: {_what_happened(error, None)}") from error


def _what_happened(error: BaseException, path: Path | None) -> str:
    """An error on one line, with the line of the file that raised it."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if path and frame.filename == str(path)]
    line = error.lineno if isinstance(error, SyntaxError) else frames[-1].lineno if frames else None
    said = error.msg if isinstance(error, SyntaxError) else str(error)
    text = f"{type(error).__name__}: {' '.join(said.split())}"
    return text if line is None else f"line {line}: {text}"


def _task_of(module: ModuleType, attribute: str, where: str) -> Task:
    """The task that a module has under a name: an instance, or a class that is made one; the same one every time."""
    if not hasattr(module, attribute):
        known = [name for name, value in vars(module).items() if _looks_like_a_task(value, module)]
        near = known or difflib.get_close_matches(attribute, vars(module), n=1)
        raise TaskError(f"{where}: has no {attribute}" + (f"; it has {', '.join(near)}" if near else ""))
    found = getattr(module, attribute)
    if not inspect.isclass(found):
        _check(found, where)
        return cast(Task, found)
    made = vars(module).setdefault("__logitbank_tasks__", {})
    if found not in made:
        try:
            task = found()
        except Exception as error:
            said = " ".join(str(error).split())
            raise TaskError(f"{where}: {attribute}() cannot be made: {type(error).__name__}: {said}") from error
        _check(task, where)
        made[found] = task
    return cast(Task, made[found])


def _looks_like_a_task(value: Any, module: ModuleType) -> bool:
    own = inspect.isclass(value) and value.__module__ == module.__name__
    return (own or not inspect.isclass(value)) and hasattr(value, "to_example")


def _check(task: Any, where: str) -> None:
    """Refuse what is not a task: names every member that is missing, or the first that is of another kind."""
    attributes, methods = get_type_hints(Task), _methods()
    lacking = [name for name in attributes if not hasattr(task, name)]
    lacking += [f"{name}()" for name, own in methods.items() if getattr(type(task), name, own) is own]
    if len(lacking) == len(attributes) + len(methods):
        raise TaskError(f"{where}: expected a task, got {_kind(task)}; see the protocol Task in logitbank.tasks.common")
    if lacking:
        raise TaskError(f"{where}: lacks {', '.join(lacking)}; see the protocol Task in logitbank.tasks.common")
    for name, kind in attributes.items():
        if not _fits(value := getattr(task, name), kind):
            raise TaskError(f"{where}: {name}: expected {_in_words(kind)}, got {value!r}")
    for name, method in methods.items():
        wanted = list(inspect.signature(method).parameters)[1:]
        try:
            inspect.signature(getattr(task, name)).bind(*wanted)
        except TypeError:
            raise TaskError(f"{where}: {name}(): expected the parameters {', '.join(wanted)}") from None
    if not NAME.fullmatch(task.name):
        raise TaskError(f"{where}: name: expected letters, digits, _ and - only, got {task.name!r}")
    if not task.sources and not isinstance(task, ReadsFiles):
        raise TaskError(f"{where}: sources: expected at least one Source, got none")
    alone = UNDETERMINED in task.languages and len(task.languages) > 1
    if alone or not task.languages or not all(map(LANGUAGE.fullmatch, task.languages)):
        raise TaskError(
            f"{where}: languages: expected ISO 639-1 codes such as ('en', 'ja'), or ('und',) if the language of "
            f"examples is unknown, got {task.languages!r}"
        )


def _methods() -> dict[str, Any]:
    return {name: value for name, value in vars(Task).items() if inspect.isfunction(value) and name[0] != "_"}


def _fits(value: Any, kind: Any) -> bool:
    if (origin := get_origin(kind)) is tuple:
        return isinstance(value, tuple) and all(_fits(item, get_args(kind)[0]) for item in value)
    if origin is not None:  # a mapping
        return isinstance(value, Mapping) and all(_fits(item, get_args(kind)[1]) for item in value.values())
    return isinstance(value, kind) and not isinstance(value, bool)


def _in_words(kind: Any) -> str:
    if (origin := get_origin(kind)) is tuple:
        return f"a tuple, every item {_in_words(get_args(kind)[0])}"
    if origin is not None:
        return f"a mapping, every value {_in_words(get_args(kind)[1])}"
    return _WORDS[kind]


def _kind(value: Any) -> str:
    return f"the {type(value).__name__} {value.__name__}" if hasattr(value, "__name__") else f"a {type(value).__name__}"


def _source_files(kind: type) -> list[Path]:
    """Files of a class and of what it inherits."""
    return [file for parent in kind.__mro__ for file in _file_of(parent.__module__)]


def _file_of(module: str) -> list[Path]:
    """The file of a module; none for one of this package or of Python's library."""
    file = getattr(sys.modules[module], "__file__", None)
    if file is None or module.partition(".")[0] in sys.stdlib_module_names or _is_ours(module):
        return []
    return [Path(file)]


def _is_ours(module: str) -> bool:
    return module.partition(".")[0] == "logitbank"
