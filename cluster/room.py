"""How many actors a cluster has room for, and what each of them takes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from logitbank.cluster.connection import Cluster, Node
from logitbank.cluster.options import RayOptions
from logitbank.errors import ConfigError, counted


@dataclass(frozen=True)
class Room:
    """What an actor takes.

    Attributes:
        actors: at most.
        cpus: of each.
        gpus: of each, below 1 for a share of one.
        bundles: whether its GPUs are a placement group's, one in each bundle, for an engine that starts a process
            of its own on every one; otherwise they are the actor's.
    """

    actors: int
    cpus: int
    gpus: float
    bundles: bool = False

    def __str__(self) -> str:
        each = f"{self.gpus:g} GPU{'' if self.gpus <= 1 else 's'}" if self.gpus else counted(self.cpus, "core")
        return f"{counted(self.actors, 'actor')} of {each}"

    def on(self, node: Node) -> int:
        """How many actors fit on an empty node."""
        most = node.cpus // self.cpus
        if self.gpus:
            most = min(most, _many(node.gpus, self.gpus))
        return int(most)

    def among(self, nodes: Sequence[Node]) -> int:
        """How many fit on all of them, empty."""
        if self.bundles:
            return int(min(sum(node.gpus for node in nodes) // self.gpus, sum(n.cpus for n in nodes) // self.gpus))
        return sum(map(self.on, nodes))

    def place(self, ray: Any) -> tuple[dict[str, Any], Any]:
        """Options of an actor, and its placement group where it has one."""
        if not self.bundles:
            return {"num_cpus": self.cpus, "num_gpus": self.gpus}, None
        from ray.util.placement_group import placement_group
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        # The actor computes nothing itself, and shares a core with the process of its first GPU.
        group = placement_group([{"CPU": 1, "GPU": 1}] * int(self.gpus), strategy="PACK")
        strategy = PlacementGroupSchedulingStrategy(group, 0, placement_group_capture_child_tasks=True)
        return {"num_cpus": 0, "num_gpus": 0, "scheduling_strategy": strategy}, group


def room(cluster: Cluster, options: RayOptions, *, gpus: float | None = None, bundles: bool = False) -> Room:
    """What each actor takes, and how many there are to be.

    Args:
        cluster: has to have room for them: all, where it is this machine; one, where others may join.
        options: what was asked.
        gpus: that the work needs, if nothing was asked; None for one if there are any.
        bundles: whether the engine starts processes of its own on several GPUs.

    Raises:
        ConfigError: this machine has less than was asked.
    """
    nodes = cluster.nodes()
    have = int(sum(node.gpus for node in nodes))
    if options.gpus is not None:
        gpus = options.gpus
    elif gpus is None:
        gpus = 1.0 if have else 0.0
    cores = max((int(node.cpus) for node in nodes), default=1)
    cpus = options.cpus or (max(1, cores // options.actors) if cluster.local and options.actors and not gpus else 1)
    wanted = Room(options.actors or 1, cpus, gpus, bundles and gpus > 1)
    fit = wanted.among(nodes)
    if cluster.local and gpus and _many(have, gpus) < wanted.actors:
        raise ConfigError(
            f"--{options.per}s {wanted.actors} --gpus-per-{options.per} {gpus:g}: needs "
            f"{counted(math.ceil(wanted.actors * gpus), 'GPU')}, this machine has {have or 'none'}; ask for fewer, or "
            "give --ray-address"
        )
    if cluster.local and fit < wanted.actors:
        raise ConfigError(
            f"--{options.per}s {wanted.actors} --cpus-per-{options.per} {cpus}: needs {wanted.actors * cpus} cores, "
            f"this machine has {cores}; ask for fewer"
        )
    if options.actors is not None:
        return wanted
    # On processors alone an engine has a node to itself: its arithmetic takes all cores there are.
    most = fit if gpus else len(nodes)
    return Room(max(1, most), cpus, gpus, wanted.bundles)


def _many(have: float, each: float) -> int:
    """How often a share goes into what there is: 4 times 0.25 into 1."""
    per_gpu = int(1 / each + 1e-9) if each < 1 else 0
    return int(have) * per_gpu if each < 1 else int(have // each)
