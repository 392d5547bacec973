"""One actor, as the driver sees it."""

from __future__ import annotations

import enum
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from logitbank.cluster.member import Answer, Item, Member, Place, Said
from logitbank.cluster.room import Room

logger = logging.getLogger(__name__)

GRACE = 10.0  # seconds for actors to end their step and release their locks


class Died(Exception):
    """The actor's process or node is gone.

    Attributes:
        started: whether it ever ran: one that cannot even import this package never did.
    """

    def __init__(self, why: str, *, started: bool) -> None:
        super().__init__(why)
        self.started = started


class Phase(enum.Enum):
    """What an actor is about."""

    PLACING = "placing"
    OPENING = "opening"
    WORKING = "working"
    IDLE = "idle"


@dataclass(eq=False)
class Slot:
    """One actor.

    Attributes:
        ray: the module.
        number: no other actor of the job has had it.
        actor: its handle.
        placement: its placement group, where it has one.
        call: what it is asked; None while idle.
        phase: what that is.
        asked_status: the last question how far it is, where that is not answered yet.
        place: where it runs; None while it waits for room.
        item: that it does.
        began: when the item was given.
        done: of the item's cost, as far as it was heard.
        group: of its last item.
        deaths: of those that it replaces, in a row.
        opened: when its engine was open.
        worked: seconds that it had an item.
    """

    ray: Any
    number: int
    actor: Any
    placement: Any
    call: Any
    phase: Phase = Phase.PLACING
    asked_status: Any = None
    place: Place | None = None
    item: Item | None = None
    began: float = 0.0
    done: float = 0.0
    group: str | None = None
    deaths: int = 0
    opened: float | None = None
    worked: float = 0.0

    @classmethod
    def start(cls, ray: Any, room: Room, number: int) -> Slot:
        """Ask for an actor; it waits for room by itself."""
        options, placement = room.place(ray)
        kind = ray.remote(max_restarts=0, max_task_retries=0, concurrency_groups={"aside": 1}, **options)(Member)
        actor = kind.remote(str(Path.cwd()))
        return cls(ray, number, actor, placement, actor.place.remote())

    def __str__(self) -> str:
        return f"actor {self.number}" + (f" on {self.place.address}" if self.place else "")

    def ask(self, phase: Phase, method: str, *arguments: Any) -> None:
        """Have the actor do something."""
        self.phase, self.call = phase, getattr(self.actor, method).remote(*arguments)

    def answer(self) -> Answer:
        """What its call returned, with every line that was said until then.

        Raises:
            Died: it will never return.
        """
        try:
            answer: Answer = self.ray.get(self.call)
        except self.ray.exceptions.RayError as error:
            raise Died(_why(error, self.ray), started=not getattr(error, "actor_init_failed", False)) from error
        return replace(answer, said=(*self._unread(), *answer.said))

    def status(self) -> Answer | None:
        """How far it is, if it has reported that since the last call; asks again."""
        answer = None
        if self.asked_status is not None:
            ready, _ = self.ray.wait([self.asked_status], timeout=0)
            if not ready:
                return None
            try:
                answer = self.ray.get(self.asked_status)
            except self.ray.exceptions.RayError:  # its call will say so too
                return None
        busy = self.phase in (Phase.OPENING, Phase.WORKING)
        self.asked_status = self.actor.status.options(concurrency_group="aside").remote() if busy else None
        return answer

    def _unread(self) -> tuple[Said, ...]:
        """Lines that a status took from the actor and that nobody has read: the job may end before the next look."""
        asked, self.asked_status = self.asked_status, None
        if asked is None:
            return ()
        try:
            status: Answer = self.ray.get(asked, timeout=GRACE)
        except self.ray.exceptions.RayError:
            return ()
        return status.said

    def item_ends(self) -> None:
        """It no longer has one."""
        if self.item is not None:
            self.worked += time.monotonic() - self.began
        self.item, self.done = None, 0.0

    @staticmethod
    def close_all(slots: Sequence[Slot]) -> None:
        """End actors: those that work after the step they are at, those that do not answer at once."""
        placed = [slot for slot in slots if slot.place is not None]
        for slot in placed:
            slot.actor.stop.options(concurrency_group="aside").remote()
        closing = [slot.actor.close.remote() for slot in placed]
        if closing:
            slots[0].ray.wait(closing, num_returns=len(closing), timeout=GRACE)
        for slot in slots:
            slot.ray.kill(slot.actor)
            if slot.placement is not None:
                slot.ray.util.remove_placement_group(slot.placement)


def _why(error: Exception, ray: Any) -> str:
    """The death in a few words, where Ray's have a known one in them."""
    text = str(error)
    if isinstance(error, ray.exceptions.OutOfMemoryError) or "low memory" in text.partition("Some common causes")[0]:
        return "the machine was out of memory"
    if getattr(error, "actor_init_failed", False):
        return text.strip().splitlines()[-1]
    return "its process ended"
