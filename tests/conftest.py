"""Fixtures that several test modules share."""

from __future__ import annotations

import copy
import functools
import gc
import itertools
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest

# The same examples in every run: what fails fails again. HYPOTHESIS_PROFILE=explore draws others.
hypothesis.settings.register_profile("reproducible", derandomize=True, deadline=None)
hypothesis.settings.register_profile("explore", deadline=None)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "reproducible"))

# Some tests fork this process. A child that collected what the threads of its parent were using would crash.
os.register_at_fork(after_in_child=gc.freeze)

# No test asks the hub: offline, a name that is not here is an error at once instead of minutes of retries.
os.environ["HF_HUB_OFFLINE"] = os.environ["HF_DATASETS_OFFLINE"] = "1"

SHARED = Path(__file__).resolve().parents[2] / "shared"

# Files whose tests take longest begin: begun last, one of them would keep a single worker busy at the end.
LONGEST = (
    "tests/cluster/test_commands.py",
    "tests/scripts/test_study.py",
    "tests/student_train/test_sharding.py",
    "tests/package/test_wheel.py",
    "tests/cluster",
    "tests/scripts",
    "tests/teacher_cache/test_commands.py",
    "tests/storage/test_remote.py",
    "tests/docs/test_bench_gpu.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Order files, each of them whole; with `--no-loadscope-reorder` workers take them in this order."""

    def place(item: pytest.Item) -> int:
        return next((i for i, start in enumerate(LONGEST) if item.nodeid.startswith(start)), len(LONGEST))

    items.sort(key=place)


@pytest.fixture(scope="session")
def shared() -> Path:
    """Real data, tokenizers and the proxy model that lie beside the checkout, where they do."""
    if not (SHARED / "models").is_dir():
        pytest.skip(f"real data and models are not at {SHARED}")
    return SHARED


@pytest.fixture(scope="session")
def label_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small label store without teachers, to be read."""
    from tests.storage import label_stores  # zarr: most tests need none

    path = tmp_path_factory.mktemp("labels") / "store"
    label_stores.build(str(path), views=())
    return path


@pytest.fixture(scope="session")
def real_tokenizer(shared: Path) -> Callable[..., Any]:
    """`real_tokenizer(name, template=None)`: a real tokenizer, opened once; with a real template, or the one in text.

    Each call gives an object of its own, whose template may be changed.
    """
    from transformers import AutoTokenizer  # slow to import: most tests need none

    @functools.cache
    def opened(name: str) -> Any:
        return AutoTokenizer.from_pretrained(shared / "tokenizers" / name)

    def real(name: str, template: str | None = None) -> Any:
        tokenizer = copy.copy(opened(name))
        if template is not None:
            file = shared / "tokenizers" / "templates" / f"{template}.jinja"
            tokenizer.chat_template = template if "{" in template else file.read_text(encoding="utf-8")
        return tokenizer

    return real


@pytest.fixture(scope="session")
def bucket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[], str]]:
    """`bucket()` gives a fresh `s3://` URL below a bucket of an S3 server that runs as its own process."""
    pytest.importorskip("moto.server", reason="the S3 server needs moto[server]")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    endpoint = f"http://127.0.0.1:{port}"
    log = (tmp_path_factory.mktemp("s3") / "log").open("wb")
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(command, stdout=log, stderr=log)
    settings = {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in settings.items():
            patch.setenv(name, value)
        try:
            _await(endpoint, server)
            urllib.request.urlopen(urllib.request.Request(f"{endpoint}/teachers", method="PUT")).close()
            numbers = itertools.count()
            yield lambda: f"s3://teachers/{os.getpid()}/{next(numbers)}"
        finally:
            server.kill()
            server.wait()
            log.close()


def _await(endpoint: str, server: subprocess.Popen[bytes]) -> None:
    for _ in range(600):
        assert server.poll() is None, "the S3 server ended"
        try:
            urllib.request.urlopen(f"{endpoint}/moto-api/").close()
        except OSError:
            time.sleep(0.1)
        else:
            return
    raise AssertionError("the S3 server did not start")
