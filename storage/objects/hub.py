"""Datasets of the Hugging Face hub: which one a URL names, at which commit, and what the hub refuses in one line."""

from __future__ import annotations

import contextlib
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from urllib.parse import unquote

import httpx2
from huggingface_hub import HfApi, hf_hub_url
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
from logitbank.storage.objects.web import WebSource

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
        """What a URL names; StoreError for one that is no dataset's."""
        found = HUB_URL.fullmatch(url.rstrip("/"))
        if found is None:
            raise StoreError(f"--store {shlex.quote(url)}: expected hf://datasets/ORG/NAME or …/NAME@REVISION")
        revision = found["revision"]
        return cls(found["repository"], None if revision is None else unquote(revision), found["folder"] or "")


def open_hub(url: str) -> WebSource:
    """The files of a dataset, all as they are in one commit, whatever is pushed meanwhile.

    Raises:
        StoreError: no such dataset or revision, no right to read it, or no hub.
    """
    place, api = HubPlace.of(url), HfApi()
    with hub_errors(f"--store {shlex.quote(url)}", place.repository, place.revision):
        commit = api.dataset_info(place.repository, revision=place.revision).sha

    def address(name: str) -> str:
        path = f"{place.folder}/{name}" if place.folder else name
        return hf_hub_url(place.repository, path, repo_type="dataset", revision=commit, endpoint=api.endpoint)

    return WebSource(url, address=address, headers=build_hf_headers())


@contextlib.contextmanager
def hub_errors(what: str, repository: str, revision: str | None = None) -> Iterator[None]:
    """Whatever the hub or the way there refuses, as one line.

    Args:
        what: the option and value that the message begins with.
        repository: `ORG/NAME`.
        revision: the revision asked for.
    """
    try:
        yield
    except LocalTokenNotFoundError:
        raise StoreError(f"{what}: the hub asks for a token; {LOG_IN}") from None
    except GatedRepoError:
        raise StoreError(f"{what}: {repository} is gated; accept its conditions on the hub, then {LOG_IN}") from None
    except RevisionNotFoundError:
        raise StoreError(f"{what}: {repository} has no revision {revision}; name a branch, tag or commit") from None
    except RepositoryNotFoundError:
        raise StoreError(
            f"{what}: no dataset {repository} on the hub that you may read; check its name, and {LOG_IN}"
        ) from None
    except HFValidationError as error:
        raise StoreError(f"{what}: expected ORG/NAME of a dataset, got {repository} ({_first_line(error)})") from None
    except HfHubHTTPError as error:
        status = error.response.status_code
        if status in (401, 403):
            raise StoreError(f"{what}: the hub refused (HTTP {status}); {LOG_IN}, with the right to do this") from None
        raise StoreError(f"{what}: the hub answered HTTP {status}: {_first_line(error)}; try again") from error
    except (OfflineModeIsEnabled, httpx2.HTTPError) as error:
        raise StoreError(f"{what}: cannot reach the hub: {_first_line(error)}; try again") from error


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
