"""Work shared by actors of Ray: a pool of engines that stay open, items given out as they are done, retries.

It knows no teacher, student or evaluation: it is told how to make an engine, and what to give it.
"""

from logitbank.cluster.connection import Cluster, connect
from logitbank.cluster.member import Factory, Item
from logitbank.cluster.options import RayOptions, add_ray, ray_options
from logitbank.cluster.pool import Job, Report, run_pool
from logitbank.cluster.room import Room, room

__all__ = [
    "Cluster",
    "Factory",
    "Item",
    "Job",
    "RayOptions",
    "Report",
    "Room",
    "add_ray",
    "connect",
    "ray_options",
    "room",
    "run_pool",
]
