"""logitbank push: pack a finished store into few files, and share it on the hub or on any web server.

    logitbank push runs/store ORG/NAME --license apache-2.0
    logitbank push runs/store --output runs/packed

Run an interrupted push again: what is uploaded is not uploaded twice.
"""

from __future__ import annotations

import argparse
import contextlib
import shlex
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from logitbank.command import CommandParser, run_command
from logitbank.errors import ConfigError, counted


def make_parser() -> CommandParser:
    """The command's arguments."""
    parser = CommandParser(
        prog="logitbank push", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("store", metavar="STORE", help="directory or fsspec URL of a finished store")
    parser.add_argument("repository", nargs="?", metavar="ORG/NAME", help="dataset on the hub; created if missing")
    parser.add_argument(
        "--output",
        type=Path,
        metavar="DIR",
        help="keep the packed store in this directory (default: a temporary directory)",
    )
    parser.add_argument("--view", action="append", metavar="VIEW", help="share only this view; can be repeated")
    parser.add_argument(
        "--license", action="append", default=[], metavar="ID", help="licence named in the data card; can be repeated"
    )
    parser.add_argument("--public", action="store_true", help="create a public dataset; needs --license")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of the command."""
    arguments = make_parser().parse_args(argv)
    run_command(lambda: _run(arguments), resumes=True)


def _run(arguments: argparse.Namespace) -> None:
    if arguments.repository is None and arguments.output is None:
        raise ConfigError("push: expected ORG/NAME, --output DIR or both, got neither")
    if arguments.repository is not None and arguments.repository.count("/") != 1:
        raise ConfigError(f"push: expected ORG/NAME of a dataset on the hub, got {shlex.quote(arguments.repository)}")
    if arguments.public and not arguments.license:
        raise ConfigError("--public: expected at least one --license, got none; give the licences of data and teacher")
    from logitbank.progress import Progress
    from logitbank.storage import TeacherStore, is_label_store  # zarr and the rest: not for --help
    from logitbank.storage.objects import bytes_of, create_dataset, pack_objects, push_folder
    from logitbank.teacher_cache.sharing.card import CARD_NAME, write_card

    if is_label_store(arguments.store):
        raise ConfigError(f"push: expected a store of teacher tokens, but {shlex.quote(arguments.store)} holds labels")
    store = TeacherStore.open(arguments.store)
    views = tuple(dict.fromkeys(arguments.view or store.views))
    if not views:
        raise ConfigError(f"push: {shlex.quote(arguments.store)} has no finished view; expected a finished store")
    for view in views:
        store.require_view(view)
    size = bytes_of(store.objects, views)
    url = "DIRECTORY" if arguments.repository is None else f"hf://datasets/{arguments.repository}"
    with _folder(arguments.output, arguments.store, size) as folder:
        card = write_card(store, url, views, arguments.license, size)
        private = None
        if arguments.repository is not None:  # before gigabytes are written for nothing
            private = create_dataset(arguments.repository, card, private=not arguments.public)
        with Progress("pack", size, "bytes") as progress:
            names = pack_objects(store.objects, folder, views=views, advance=progress.advance)
        (folder / CARD_NAME).write_text(card, encoding="utf-8")
        print(f"packed {counted(len(views), 'view')}, {size:,} bytes, into {counted(len(names) + 1, 'file')}")
        if arguments.repository is None:
            print(f"serve {folder} with any web server, and read it with --store https://…")
            return
        message = f"{store.info.teacher_model}: {', '.join(views)}"
        commit = push_folder(folder, [*names, CARD_NAME], arguments.repository, message)
    print(f"pushed to {url}@{commit[:12]} ({'private' if private else 'public'}); read it with --store {url}")


@contextlib.contextmanager
def _folder(output: Path | None, store: str, size: int) -> Iterator[Path]:
    """Where the packed store goes: a directory to keep, or one beside the store that is removed again."""
    from logitbank.storage.objects import INDEX_NAME
    from logitbank.teacher_cache.sharing.card import CARD_NAME

    if output is not None:
        if output.resolve() == Path(store).resolve():
            raise ConfigError(f"--output {shlex.quote(str(output))}: expected a directory other than the store itself")
        held = {path.name for path in output.iterdir()} if output.is_dir() else set()
        if strange := sorted(held - {INDEX_NAME, CARD_NAME, "packs"}):
            raise ConfigError(
                f"--output {shlex.quote(str(output))}: expected a new directory or a packed store, "
                f"but it holds {strange[0]}; choose another"
            )
    beside = Path(tempfile.gettempdir()) if "://" in store else Path(store).absolute().parent
    place = beside if output is None else output.absolute().parent
    nearest = next(folder for folder in (place, *place.parents) if folder.exists())
    if (free := shutil.disk_usage(nearest).free) < size:
        raise ConfigError(
            f"--output: packing needs {size:,} bytes in {shlex.quote(str(nearest))}, but {free:,} are free; "
            "name a directory on a larger disk"
        )
    if output is not None:
        output.mkdir(parents=True, exist_ok=True)
        yield output
        return
    with tempfile.TemporaryDirectory(prefix=".push-", dir=beside) as temporary:
        yield Path(temporary)


if __name__ == "__main__":
    main()
