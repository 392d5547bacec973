"""What follows from result files, kept beside their copies: answers of queries, and numbers made of them.

`RESULTS/.cache/answers/` has a file for each, named by a hash of all that it follows from: what was asked, the views
it was asked of, and every file (name, size, modification time) of the tables that they read. So what is found is true,
and what is no longer asked for is removed in time. Little is lost with it: deleting `.cache` is safe.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
import uuid
from pathlib import Path

import pyarrow as pa

ENOUGH = 100  # files that take longer to read than an answer
MOST_BYTES = 2**25  # of one answer: what is larger is made again as fast
KEEP_SECONDS = 7 * 86400  # since an answer was last asked for
DIGEST = hashlib.sha256().digest_size


def key_of(*parts: object) -> str:
    """A name for what follows from these parts, whose `repr` says all of them."""
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def recall(results: Path, key: str) -> pa.Table | None:
    """What was kept under a key; None if nothing was, or nothing whole."""
    path = _path(results, key)
    try:
        content = memoryview(path.read_bytes())
        if hashlib.sha256(content[DIGEST:]).digest() != content[:DIGEST]:
            return None
        with contextlib.suppress(OSError):
            os.utime(path)
        return pa.ipc.open_stream(pa.py_buffer(content[DIGEST:])).read_all()
    except (OSError, pa.ArrowInvalid):
        return None


def keep(results: Path, key: str, answer: pa.Table) -> None:
    """Keep an answer that is not too large, where the directory can be written; remove those nobody asks for."""
    if answer.nbytes > MOST_BYTES:
        return
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, answer.schema) as writer:
        writer.write_table(answer)
    content = memoryview(sink.getvalue())
    path = _path(results, key)
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f"{key}-{uuid.uuid4().hex[:12]}.partial")
        temporary.write_bytes(hashlib.sha256(content).digest() + content)
        temporary.replace(path)
        for other in path.parent.iterdir():
            with contextlib.suppress(FileNotFoundError):  # another reader was faster
                if time.time() - other.stat().st_mtime > KEEP_SECONDS:
                    other.unlink()


def _path(results: Path, key: str) -> Path:
    return results / ".cache" / "answers" / f"{key}.arrow"
