"""Datasets of the Hugging Face hub: read at one commit, pushed in an order that never shows half a store.

What the hub refuses is one line.
"""

from __future__ import annotations

import contextlib
import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, unquote

import httpx2
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, RepoCard
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import build_hf_headers

from logitbank.errors import StoreError
from logitbank.storage.objects.packing import PACKS
from logitbank.storage.objects.web import TRANSIENT, WebSource, attempts

HUB_URL = re.compile(r"hf://datasets/(?P<repository>[^/@]+/[^/@]+)(@(?P<revision>[^/]+))?(/(?P<folder>.+))?")
LOG_IN = "log in with hf auth login, or set HF_TOKEN"


@dataclass(frozen=True)
class HubPlace:
    """A folder of a dataset on the hub.

    Attributes:
        repository: `ORG/NAME`.
        revision: branch, tag or commit; None for the newest.
        folder: within it; empty for the top.
    """

    repository: str
    revision: str | None
    folder: str

    @classmethod
    def of(cls, url: str) -> HubPlace:
        """What a URL names; StoreError for one that is not a dataset's."""
        found = HUB_URL.fullmatch(url.rstrip("/"))
        if found is None:
            raise StoreError(f"--store {shlex.quote(url)}: expected hf://datasets/ORG/NAME or …/NAME@REVISION")
        revision = found["revision"]
        return cls(found["repository"], None if revision is None else unquote(revision), found["folder"] or "")


def open_hub(url: str) -> WebSource:
    """The files of a dataset, all as they are in one commit, whatever is pushed in the meantime.

    Raises:
        StoreError: no such dataset or revision, no right to read it, or no hub.
    """
    place, api = HubPlace.of(url), HfApi()
    with _hub_errors(f"--store {shlex.quote(url)}", place.repository, place.revision):
        commit = _commit_of(api, place)

    def address(name: str) -> str:
        path = f"{place.folder}/{name}" if place.folder else name
        return f"{api.endpoint}/datasets/{place.repository}/resolve/{commit}/{quote(path)}"

    return WebSource(url, address=address, headers=build_hf_headers())


def _commit_of(api: HfApi, place: HubPlace) -> str:
    """The commit that a revision stands for now; a hub that fails for a moment is asked again."""
    failed: HfHubHTTPError | None = None
    for _ in attempts():
        try:
            return str(api.dataset_info(place.repository, revision=place.revision).sha)
        except HfHubHTTPError as error:
            if error.response.status_code not in TRANSIENT:
                raise
            failed = error
    assert failed is not None
    raise failed


def create_dataset(repository: str, card: str, *, private: bool) -> bool:
    """Create a dataset on the hub if there is none; an existing one keeps its visibility.

    Args:
        repository: `ORG/NAME`.
        card: the data card to come, which the hub checks now rather than after hours of uploading.
        private: whether a new one is.

    Returns:
        Whether it is private.

    Raises:
        StoreError: no right to create it or to write there, a card that the hub refuses, or no hub.
    """
    api = HfApi()
    with _hub_errors(f"push {repository}", repository):
        try:
            RepoCard(card).validate(repo_type="dataset")
        except ValueError as error:
            raise StoreError(
                f"push {repository}: the hub rejected the data card: {' '.join(str(error).split())}; check --license"
            ) from None
        api.create_repo(repository, repo_type="dataset", private=private, exist_ok=True)
        return bool(api.dataset_info(repository).private)


def push_folder(folder: Path, names: Sequence[str], repository: str, message: str) -> str:
    """Upload a packed store; run again, it resumes an interrupted upload.

    Packs go first. The index and what is beside it follow in one commit of their own, which also removes packs that
    the index does not name: a reader sees the store as it was, or as it will be.

    Args:
        folder: of the packed store.
        names: its files, relative to the folder.
        repository: `ORG/NAME`, which exists.
        message: of the commits.

    Returns:
        The last commit.

    Raises:
        StoreError: what the hub refused.
    """
    api, packs = HfApi(), [name for name in names if name.startswith(f"{PACKS}/")]
    with _hub_errors(f"push {repository}", repository):
        api.upload_folder(
            repo_id=repository,
            repo_type="dataset",
            folder_path=folder,
            allow_patterns=packs,
            commit_message=f"{message}: packs",
        )
        stale = [
            name
            for name in api.list_repo_files(repository, repo_type="dataset")
            if name.startswith(f"{PACKS}/") and name not in packs
        ]
        last = api.create_commit(
            repository,
            [
                *(CommitOperationAdd(name, folder / name) for name in names if name not in packs),
                *(CommitOperationDelete(name) for name in stale),
            ],
            repo_type="dataset",
            commit_message=message,
        )
    return str(last.oid)


@contextlib.contextmanager
def _hub_errors(what: str, repository: str, revision: str | None = None) -> Iterator[None]:
    """Whatever the hub or the way there refuses, as one line.

    Args:
        what: the option and value that the message begins with.
        repository: `ORG/NAME`.
        revision: the revision asked for.
    """
    try:
        yield
    except StoreError:
        raise
    except LocalTokenNotFoundError:
        raise StoreError(f"{what}: the hub asks for a token; {LOG_IN}") from None
    except GatedRepoError:
        raise StoreError(f"{what}: {repository} is gated; accept its conditions on the hub, then {LOG_IN}") from None
    except RevisionNotFoundError:
        raise StoreError(f"{what}: {repository} has no revision {revision}; give a branch, tag or commit") from None
    except RepositoryNotFoundError:
        raise StoreError(
            f"{what}: no dataset {repository} on the hub that you can read; check its name, and {LOG_IN}"
        ) from None
    except HFValidationError as error:
        raise StoreError(f"{what}: expected ORG/NAME of a dataset, got {repository} ({_first_line(error)})") from None
    except HfHubHTTPError as error:
        status = error.response.status_code
        if status in (401, 403):
            raise StoreError(
                f"{what}: the hub refused (HTTP {status}); {LOG_IN}, with an account that has write access"
            ) from None
        raise StoreError(f"{what}: the hub answered HTTP {status}: {_first_line(error)}; try again") from error
    except (RuntimeError, ValueError) as error:  # the first of a thread that uploads
        cause = error.__cause__ if isinstance(error.__cause__, Exception) else error
        raise StoreError(f"{what}: {_first_line(cause)}; run the same command to resume") from error
    except (OfflineModeIsEnabled, httpx2.HTTPError) as error:
        raise StoreError(f"{what}: cannot reach the hub: {_first_line(error)}; try again") from error


def _first_line(error: Exception) -> str:
    said = error.server_message if isinstance(error, HfHubHTTPError) else None
    return said or (str(error).strip().splitlines() or [type(error).__name__])[0]
