"""Reach a running Ray, or start one on this machine; say in one line what is wrong with it."""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from logitbank.cluster.options import RayOptions
from logitbank.errors import ConfigError, counted

logger = logging.getLogger(__name__)

CLIENT = "ray://"
GCS_PORT, CLIENT_PORT = 6379, 10001  # where an address names none
OBJECT_STORE = 100 * 2**20  # bytes: items and answers are small
# No usage is reported; an actor without GPUs sees none, as Ray does today with a warning that it will not.
SETTINGS = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1"}
HTTP2_HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(
    (0, 0, 0, 4, 0, 0, 0, 0, 0)
)  # and empty settings: gRPC begins so


@dataclass(frozen=True)
class Node:
    """A living machine of the cluster, or one of several pretended ones."""

    name: str
    cpus: float
    gpus: float


@dataclass(frozen=True)
class Cluster:
    """A connection.

    Attributes:
        ray: the module.
        local: whether it was started for this command, on this machine.
        address: as given; what is said of it.
    """

    ray: Any
    local: bool
    address: str

    def nodes(self) -> list[Node]:
        """Those that live now."""
        found = []
        for node in self.ray.nodes():
            if node["Alive"]:
                have: Mapping[str, float] = node["Resources"]
                found.append(Node(node["NodeID"], have.get("CPU", 0.0), have.get("GPU", 0.0)))
        return found

    def __str__(self) -> str:
        nodes = self.nodes()
        gpus, cpus = (int(sum(getattr(node, kind) for node in nodes)) for kind in ("gpus", "cpus"))
        have = f"{counted(len(nodes), 'node')}, {counted(gpus, 'GPU')}, {counted(cpus, 'core')}"
        return f"Ray on this machine: {have}" if self.local else f"Ray at {self.address}: {have}"


@contextlib.contextmanager
def connect(options: RayOptions, actors: int) -> Iterator[Cluster]:
    """Hold a connection for as long as the context lasts; what was started for it is stopped after it.

    Args:
        options: where, and how long to wait.
        actors: that a Ray of this machine alone has to have room for, whatever its cores.

    Raises:
        ConfigError: Ray is not installed, or cannot be reached.
    """
    if importlib.util.find_spec("ray") is None:
        raise ConfigError('--ray: Ray is not installed; pip install "logitbank[ray]"')
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    import ray

    address = options.address or os.environ.get("RAY_ADDRESS") or "local"
    local, quiet = address == "local", {"log_to_driver": False, "logging_level": logging.ERROR}
    try:
        if local:
            cores = max(len(os.sched_getaffinity(0)), actors * (options.cpus or 1))
            with _own_signals():
                ray.init("local", num_cpus=cores, include_dashboard=False, object_store_memory=OBJECT_STORE, **quiet)
        else:
            where = f"--ray-address {address}"
            _require_port(address, where, options.seconds / 2)
            _within(options.seconds, where, lambda: ray.init(address, **quiet))
        _say_deaths_once(ray)
        yield Cluster(ray, local, address)
    finally:
        ray.shutdown()


@contextlib.contextmanager
def _own_signals() -> Iterator[None]:
    """Ray sets a handler for SIGTERM; ours, which unwinds, is put back."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, before)


def _say_deaths_once(ray: Any) -> None:
    """Ray prints a paragraph to standard output for each dead process; the pool says it in a line."""
    if hasattr(ray._private.worker, "print_to_stdstream"):
        ray._private.worker.print_to_stdstream = lambda data, **options: logger.debug("%s", data)


def _require_port(address: str, where: str, seconds: float) -> None:
    """Ray itself takes a minute to find out that nobody listens."""
    if address == "auto":
        return
    host, _, port = address.removeprefix(CLIENT).rpartition(":")
    if not host:
        host, port = port, str(CLIENT_PORT if address.startswith(CLIENT) else GCS_PORT)
    if not port.isdigit():
        raise ConfigError(f"{where}: expected auto, HOST:PORT or {CLIENT}HOST:PORT")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), seconds) as connection:
            if os.environ.get("RAY_USE_TLS", "0") != "1":
                connection.sendall(HTTP2_HELLO)
                if len(connection.recv(9)) < 9:
                    raise OSError("what listens there is not Ray")
    except TimeoutError:
        raise ConfigError(f"{where}: no answer in {seconds:g} s; is Ray running there (ray status)?") from None
    except OverflowError:
        raise ConfigError(f"{where}: expected a port below 65536, got {port}") from None
    except OSError as error:
        said = error.strerror or str(error)
        raise ConfigError(f"{where}: cannot be reached: {said}; is Ray running there (ray status)?") from None


def _within(seconds: float, where: str, call: Callable[[], object]) -> None:
    """Connect, in a thread that can be given up: a port where something else listens answers nothing.

    What a thread starts dies with it on Linux, where it asked for that, as a Ray of one's own does.
    """
    outcome: list[BaseException | None] = []

    def run() -> None:
        try:
            call()
            outcome.append(None)
        except BaseException as error:
            outcome.append(error)

    thread = threading.Thread(target=run, daemon=True, name="ray")
    thread.start()
    thread.join(seconds)
    if not outcome:
        raise ConfigError(f"{where}: no answer in {seconds:g} s; is it a Ray of this version? See --ray-timeout")
    if outcome[0] is not None:
        lines = str(outcome[0]).strip().splitlines() or [type(outcome[0]).__name__]
        raise ConfigError(f"{where}: {lines[0].rstrip('. ')}; is Ray running there (ray status)?") from outcome[0]
