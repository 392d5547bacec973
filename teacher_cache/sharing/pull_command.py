"""logitbank pull: copy a store into a directory, from the hub, a web server or an object store.

    logitbank pull ORG/NAME@REVISION runs/store
    logitbank pull https://example.org/my-store runs/store --view fewshot

The directory is then a store as it was built, byte for byte. Run an interrupted pull again to resume it.
"""

from __future__ import annotations

import argparse
import re
import shlex
from collections.abc import Sequence

from logitbank.command import CommandParser, run_command
from logitbank.errors import ConfigError, counted

REPOSITORY = re.compile(r"\w[\w.-]*/[\w.-]+(@[^/]+)?")


def make_parser() -> CommandParser:
    """The command's arguments."""
    parser = CommandParser(
        prog="logitbank pull", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", metavar="SOURCE", help="ORG/NAME[@REVISION] of a dataset on the hub, or a URL")
    parser.add_argument("directory", metavar="DIRECTORY", help="directory for the store")
    parser.add_argument("--view", action="append", metavar="VIEW", help="copy only this view; can be repeated")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of the command."""
    arguments = make_parser().parse_args(argv)
    run_command(lambda: _run(arguments), resumes=True)


def _run(arguments: argparse.Namespace) -> None:
    url, directory = arguments.source, arguments.directory
    if REPOSITORY.fullmatch(url):
        url = f"hf://datasets/{url}"
    if "://" in directory:
        raise ConfigError(f"pull: expected a directory on this machine, got {shlex.quote(directory)}")
    from logitbank.progress import Progress
    from logitbank.storage import TeacherStore  # zarr and the rest: not for --help
    from logitbank.storage.objects import bytes_of, copy_objects, open_writable

    store = TeacherStore.open(url)
    views = tuple(dict.fromkeys(arguments.view or store.views))
    for view in views:
        store.view_attributes(view)
    size, target = bytes_of(store.objects, views), open_writable(directory)
    with Progress("pull", size, "bytes") as progress:
        fetched = copy_objects(store.objects, target, views=views, advance=progress.advance)
    print(
        f"{directory}: {counted(len(views), 'view')}, {size:,} bytes ({fetched:,} fetched), "
        f"every checksum verified; fingerprint {store.info.fingerprint}"
    )


if __name__ == "__main__":
    main()
