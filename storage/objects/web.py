"""Files on a web server, read in parts; what fails for a moment is asked for again."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Iterator, Mapping
from urllib.parse import quote

import httpx2

from logitbank.errors import StoreError

ATTEMPTS = 5
FIRST_PAUSE = 0.5  # seconds; doubles with each attempt
TIMEOUT = 30.0  # seconds without a byte
WHOLE_FILE = 1 << 26  # a file that comes whole, though a part was asked for, may be as large
CONNECTIONS = 16
TRANSIENT = (408, 425, 429, 500, 502, 503, 504)


def attempts() -> Iterator[None]:
    """As many as a request gets, with a pause before each but the first."""
    for attempt in range(ATTEMPTS):
        if attempt:
            time.sleep(FIRST_PAUSE * 2 ** (attempt - 1))
        yield


class WebSource:
    """A `FileSource` behind a URL that any web server may serve."""

    def __init__(
        self, url: str, *, address: Callable[[str], str] | None = None, headers: Mapping[str, str] | None = None
    ) -> None:
        """Files below a URL.

        Args:
            url: for messages, and where the files are unless `address` says otherwise.
            address: gives the address of a file.
            headers: sent with every request, though not to other hosts that the server redirects to.
        """
        self._url = url
        self._address = address or (lambda name: f"{url.rstrip('/')}/{quote(name)}")
        self._client = httpx2.Client(
            headers=dict(headers or {}),
            follow_redirects=True,
            timeout=TIMEOUT,
            limits=httpx2.Limits(max_connections=CONNECTIONS),
        )

    def read(self, name: str, start: int | None = None, stop: int | None = None) -> bytes:
        """See `FileSource.read`."""
        said = ""
        for _ in attempts():
            try:
                data, said = self._attempt(name, start, stop)
            except httpx2.TimeoutException:
                said = f"no answer in {TIMEOUT:g} s"
            except (httpx2.TransportError, httpx2.TooManyRedirects, httpx2.InvalidURL) as error:
                said = (str(error).strip().splitlines() or [type(error).__name__])[0]
            else:
                if data is not None:
                    return data
        raise StoreError(f"{self._where(name)}: {said}, {ATTEMPTS} times; try again later")

    def _attempt(self, name: str, start: int | None, stop: int | None) -> tuple[bytes | None, str]:
        """What was read, or None and what the server said, if that may pass."""
        # Identity: bytes of a part that a server compresses on its way are not those bytes of the file.
        headers = {"Accept-Encoding": "identity"}
        if start is not None and stop is not None:
            headers["Range"] = f"bytes={start}-{stop - 1}"
        with self._client.stream("GET", self._address(name), headers=headers) as answer:
            status = answer.status_code
            if status in TRANSIENT:
                return None, f"the server answered HTTP {status}"
            if status == 404:
                raise FileNotFoundError(name)
            if status == 416:  # the file ends before the part: too short, which its checksum will say
                return b"", ""
            if status in (401, 403):
                raise StoreError(f"{self._where(name)}: access denied (HTTP {status}); log in, or ask its owner")
            if status not in (200, 206):
                raise StoreError(f"{self._where(name)}: expected HTTP 200, got {status}; check the URL")
            if start is None or stop is None:
                return answer.read(), ""
            if status == 206:
                return answer.read(), ""
            size = int(answer.headers.get("Content-Length", WHOLE_FILE + 1))
            if size > WHOLE_FILE:
                raise StoreError(
                    f"{self._where(name)}: the server ignores Range, and sends whole files of {size:,} bytes; "
                    "expected HTTP 206: use a server that answers ranges, or logitbank pull from elsewhere"
                )
            return answer.read()[start:stop], ""

    def _where(self, name: str) -> str:
        return f"--store {shlex.quote(self._url)}: {name}"
