"""A Ray whose nodes are processes of this machine, started once and stopped after the last of these tests."""

from __future__ import annotations

import os
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import psutil
import pytest

NODE = {"object_store_memory": 80 * 2**20, "include_dashboard": False}


@pytest.fixture(scope="package")
def head() -> Iterator[Any]:
    """The cluster's first node: four cores to give away, and a GPU that is none."""
    ray = pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ["RAY_prestart_worker_first_driver"] = "0"  # noqa: SIM112 -- actors have processes of their own
    with tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp") as folder:  # sockets want short paths
        before = signal.getsignal(signal.SIGTERM)
        cluster = Cluster()
        cluster.add_node(num_cpus=4, num_gpus=1, temp_dir=folder, **NODE)
        signal.signal(signal.SIGTERM, before)
        yield cluster
        ray.shutdown()
        cluster.shutdown()


@pytest.fixture(autouse=True)
def own_signals() -> Iterator[None]:
    """A node that starts in this process sets a handler for SIGTERM; other tests expect none."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.fixture(scope="package")
def address(head: Any) -> str:
    """Where the cluster is."""
    return str(head.address)


@pytest.fixture
def gone() -> Callable[[int], bool]:
    """`gone(pid)`: whether a process ends within some seconds."""

    def wait(pid: int) -> bool:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            if not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
                return True
            time.sleep(0.05)
        return False

    return wait
