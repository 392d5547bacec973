"""`--ray` and what belongs to it: where the cluster is, how many actors, and what each of them takes."""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass

from logitbank.command import CommandParser, positive
from logitbank.errors import ConfigError

SECONDS = 30.0  # to reach a cluster, and then to get room for the first actor


@dataclass(frozen=True)
class RayOptions:
    """What `--ray` asked for.

    Attributes:
        address: of a running cluster (`auto`, `HOST:PORT`, `ray://HOST:PORT`); None for the environment's
            `RAY_ADDRESS`, or else a Ray of this machine alone, started and stopped with the command.
        actors: at most; None for as many as fit now.
        gpus: of each actor, below 1 for a share of one; None for what the work usually takes.
        cpus: of each actor; None for 1, or an equal share of this machine.
        seconds: to wait for the cluster, and then for room for the first actor.
        per: what the command calls an actor in its options.
    """

    address: str | None = None
    actors: int | None = None
    gpus: float | None = None
    cpus: int | None = None
    seconds: float = SECONDS
    per: str = "actor"


def add_ray(parser: CommandParser, *, per: str = "actor", what: str) -> None:
    """Add `--ray` and the options that need it.

    Args:
        parser: of the command.
        per: what the options call one that works: `--gpus-per-actor`.
        what: what they share, for the help.
    """
    parser.add_argument("--ray", action="store_true", help=f"distribute {what} to Ray actors")
    parser.add_argument(
        "--ray-address",
        metavar="ADDRESS",
        help="--ray: a running cluster, as auto, HOST:PORT or ray://HOST:PORT (default: RAY_ADDRESS, or this machine)",
    )
    parser.add_argument(
        "--ray-timeout",
        type=positive(float),
        metavar="SECONDS",
        help=f"--ray: how long to wait for the cluster, and for resources for the first actor (default: {SECONDS:g})",
    )
    parser.add_argument(
        f"--{per}s", type=positive(int), metavar="N", help=f"--ray: at most N {per}s at once (default: as many as fit)"
    )
    parser.add_argument(
        f"--gpus-per-{per}",
        type=_share,
        metavar="G",
        help="--ray: 0, a fraction such as 0.25, or a whole number (default: 1 if the cluster has GPUs)",
    )
    parser.add_argument(
        f"--cpus-per-{per}",
        type=positive(int),
        metavar="C",
        help=f"--ray: CPU cores per {per} (default: 1, or a fair share)",
    )


def ray_options(arguments: argparse.Namespace, *, per: str = "actor") -> RayOptions | None:
    """What `add_ray` was told; None without `--ray`.

    Raises:
        ConfigError: an option that needs `--ray` is given without it, or `--worker` with it.
    """
    given = {
        "--ray-address": arguments.ray_address,
        "--ray-timeout": arguments.ray_timeout,
        f"--{per}s": getattr(arguments, f"{per}s"),
        f"--gpus-per-{per}": getattr(arguments, f"gpus_per_{per}"),
        f"--cpus-per-{per}": getattr(arguments, f"cpus_per_{per}"),
    }
    if not arguments.ray:
        for option, value in given.items():
            if value is not None:
                raise ConfigError(f"{option}: needs --ray; add it, or leave {option} out")
        return None
    for option in ("worker", "processes"):
        if getattr(arguments, option, None) is not None:
            raise ConfigError(f"--{option}: --ray distributes the work itself; use one of the two")
    address, seconds, actors, gpus, cpus = given.values()
    return RayOptions(address, actors, gpus, cpus, seconds or SECONDS, per)


def _share(text: str) -> float:
    """A share of a GPU, or whole ones: Ray knows nothing between."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < math.inf or (value > 1 and value != int(value)):
        raise argparse.ArgumentTypeError(f"expected 0, a fraction of one GPU or a whole number, got {text}")
    return value
