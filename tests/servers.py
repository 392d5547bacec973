"""Web servers for tests: files with byte ranges, and faults on demand."""

from __future__ import annotations

import contextlib
import re
import threading
import time
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit


class FileServer:
    """Serves a folder on this machine.

    Attributes:
        url: where.
        requests: every GET as path and range.
        statuses: answered in place of the next files, in this order.
        ranges: whether byte ranges are honoured.
        pause: seconds before each answer.
        cut: bytes that each answer stops short of what its headers promise.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.url = ""
        self.requests: list[tuple[str, str | None]] = []
        self.statuses: list[int] = []
        self.ranges, self.pause, self.cut = True, 0.0, 0

    def counted(self) -> Counter[str]:
        """How often each path was asked for."""
        return Counter(path for path, _ in self.requests)

    def find(self, path: str) -> bytes | None:
        """What lies at a path."""
        place = self.folder / path
        return place.read_bytes() if place.is_file() else None

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        """Answer a GET."""
        path = unquote(urlsplit(handler.path).path).lstrip("/")
        wanted = handler.headers.get("Range") if self.ranges else None
        self.requests.append((path, wanted))
        time.sleep(self.pause)
        data = self.find(path)
        status = self.statuses.pop(0) if self.statuses else 404 if data is None else 206 if wanted else 200
        data = data or b""
        if status == 206:
            first, last = map(int, re.fullmatch(r"bytes=(\d+)-(\d+)", wanted or "").groups())  # type: ignore[union-attr]
            status, data = (416, b"") if first >= len(data) else (status, data[first : last + 1])
        elif status != 200:
            data = b""
        send(handler, status, data, promised=len(data))
        if self.cut and data:
            handler.close_connection = True


def send(
    handler: BaseHTTPRequestHandler, status: int, data: bytes, *, promised: int | None = None, **headers: str
) -> None:
    """Answer with a body; `promised` bytes are announced."""
    server: Any = handler.server
    handler.send_response(status)
    handler.send_header("Content-Length", str(len(data) if promised is None else promised))
    for name, value in headers.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.end_headers()
    cut = getattr(server.site, "cut", 0)
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        handler.wfile.write(data[: max(0, len(data) - cut)])


@contextlib.contextmanager
def serving(site: FileServer) -> Iterator[str]:
    """Let `site.answer` answer on a free port; gives the URL."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_GET(self) -> None:
            site.answer(self)

        do_POST = do_PUT = do_GET

        def log_message(self, *arguments: Any) -> None:
            pass

    server: Any = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.site = site
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    site.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield site.url
    finally:
        server.shutdown()
        server.server_close()
