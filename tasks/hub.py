"""Data sets of the hub, or of local clones of its repositories: opened by `datasets`, or listed as files."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from logitbank.tasks.common import HubSource, TaskError


class HubFiles(NamedTuple):
    """The files of a split on this machine, and the name of each in the repository."""

    paths: list[Path]
    names: list[str]


def open_split(source: HubSource, mirror: str | None) -> Any:
    """The rows of a hub split, memory-mapped.

    Args:
        source: which.
        mirror: directory of local clones `<org>/<name>` of hub repositories; None for the hub.

    Raises:
        TaskError: no such data set, configuration or split, one without rows, or the hub is out of reach.
    """

    def load(path: str, cache: str | None) -> Any:
        import datasets  # slow to import, and only needed here

        return datasets.load_dataset(path, source.config, split=source.split, cache_dir=cache)

    rows = _ask(source, mirror, load)
    if not len(rows):
        raise TaskError(f"{_named(source, mirror)}: has no rows")
    return rows


def split_files(source: HubSource, mirror: str | None) -> HubFiles | None:
    """The files that a hub split consists of, downloaded if they are not; None if `datasets` names none.

    Raises:
        TaskError: no such data set, configuration or split, or the hub is out of reach.
    """

    def list_files(path: str, cache: str | None) -> HubFiles | None:
        import datasets  # slow to import, and only needed here

        files = datasets.load_dataset_builder(path, source.config, cache_dir=cache).config.data_files
        if not files:
            return None
        if source.split not in files:
            known = ", ".join(map(str, files))
            raise TaskError(f"{_named(source, mirror)}: expected one of its splits ({known}), got {source.split!r}")
        here = datasets.DownloadManager().download(list(files[source.split]))
        names = [name.rpartition("@")[2].partition("/")[2] if "://" in name else name for name in files[source.split]]
        return HubFiles([Path(file) for file in here], names)

    return _ask(source, mirror, list_files)


def _ask(source: HubSource, mirror: str | None, what: Callable[[str, str | None], Any]) -> Any:
    """What `datasets` says of a data set: `what` is called with its place and a cache; its errors on one line."""
    import datasets  # slow to import, and only needed here

    path, cache = source.path, None
    if mirror is not None:
        folder = _clone(source, mirror)
        path = str(folder)
        cache = str(Path(datasets.config.HF_DATASETS_CACHE) / f"mirror-{_state(folder)}")
    named = _named(source, mirror)
    try:
        with _without_bars():
            return what(path, cache)
    except TaskError:
        raise
    except (OSError, ValueError, StopIteration, datasets.exceptions.DatasetsError) as error:
        if empty := [] if mirror is None else _empty_files(Path(path)):
            raise TaskError(f"{named}: {', '.join(empty)} has no rows; fill it, or delete it") from error
        cause = error.__cause__ or error  # datasets wraps what went wrong in "an error occurred"
        reason = (str(cause).strip() or type(cause).__name__).splitlines()[0]
        if "corresponds to no data" in reason:
            raise TaskError(f"{named}: has no rows") from error
        hint = "" if mirror is not None else "; without the hub, set data.mirror to a directory of local clones"
        raise TaskError(f"{named}: cannot be opened: {reason}{hint}") from error


@contextlib.contextmanager
def _without_bars() -> Iterator[None]:
    import datasets  # slow to import, and only needed here

    shown = not datasets.utils.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            datasets.enable_progress_bars()


def _clone(source: HubSource, mirror: str) -> Path:
    folder = Path(mirror).expanduser() / source.path
    if not folder.is_dir():
        place = shlex.quote(str(folder))
        raise TaskError(f"data.mirror: no directory {place}; expected a local clone of the hub data set {source.path}")
    return folder


def _named(source: HubSource, mirror: str | None) -> str:
    return str(source if mirror is None else dataclasses.replace(source, path=str(_clone(source, mirror))))


def _empty_files(folder: Path) -> list[str]:
    """Files of a local clone without a single byte, names from there."""
    visible = [path for path in folder.rglob("*") if not any(part.startswith(".") for part in path.parts)]
    return sorted(str(path.relative_to(folder)) for path in visible if path.is_file() and path.stat().st_size == 0)


def _state(folder: Path) -> str:
    """Names a local clone and what it holds now: place, and size and time of every file.

    `datasets` names its cache after the data card alone: of two mirrors, or of one that has changed, it
    would serve the rows that it saw first.
    """
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    stats = [(str(path.relative_to(folder)), path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    return hashlib.blake2b(f"{folder.resolve()} {stats}".encode(), digest_size=8).hexdigest()
