"""Give items to engines in actors, as they come, until all are done; replace the actors that die.

Nothing here outlasts the driver: what is done is known by what was written, and the same command finds it again.
"""

from __future__ import annotations

import itertools
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

from logitbank.cluster.connection import Cluster
from logitbank.cluster.member import Answer, Factory, Failure, Item, Said
from logitbank.cluster.room import Room
from logitbank.cluster.slot import Died, Phase, Slot
from logitbank.errors import ClusterError, counted
from logitbank.progress import Progress

logger = logging.getLogger(__name__)

KILLS = 3  # actors that die at one item, before it is held to be the reason
DEATHS = 3  # of an actor and those that replace it, without an item done in between
POLL = 1.0  # seconds between two looks at how far they are
ALONE = 600.0  # seconds without any actor, after nodes were lost, until the job ends


@dataclass(frozen=True)
class Job:
    """What a pool is for.

    Attributes:
        factory: makes the engines.
        what, unit: of the progress bar.
        finished: is told of each item that is done, and what its engine returned.
    """

    factory: Factory
    what: str
    unit: str
    finished: Callable[[Item, Any], object] = lambda item, value: None


@dataclass(frozen=True)
class Report:
    """How a job went.

    Attributes:
        items: that were done.
        deaths: of actors.
        seconds: from the first open engine to the last item done.
        idle: share of the time of open engines in which they had no item.
    """

    items: int
    deaths: int
    seconds: float
    idle: float

    def __str__(self) -> str:
        died = f", {counted(self.deaths, 'actor')} died" if self.deaths else ""
        return f"{counted(self.items, 'item')} in {self.seconds:,.0f} s, actors idle {self.idle:.0%}{died}"


def run_pool(cluster: Cluster, room: Room, job: Job, items: Sequence[Item] | None, *, seconds: float) -> Report:
    """Do all items, the costliest first, each in one of several actors.

    Args:
        cluster: where the actors live.
        room: how many there are, and what each takes.
        job: what they do.
        items: what to do; None to ask the first engine, which is opened before the others and may thus prepare what
            they find.
        seconds: to wait for room for the first actor.

    Raises:
        ClusterError: an engine cannot be made, an item fails, or actors die again and again.
    """
    pool = _Pool(cluster, room, job, seconds)
    try:
        return pool.run(items)
    finally:
        pool.close()


class _Pool:
    """See `run_pool`."""

    def __init__(self, cluster: Cluster, room: Room, job: Job, seconds: float) -> None:
        self._cluster, self._room, self._job, self._seconds = cluster, room, job, seconds
        self._numbers = itertools.count(1)
        self._slots: list[Slot] = []
        self._waiting: list[Item] | None = None  # None until an engine has listed the items
        self._left = 0
        self._kills: Counter[str] = Counter()
        self._said: set[str] = set()
        self._progress: Progress | None = None
        self._several = len(cluster.nodes()) > 1
        self._heard = self._looked = time.monotonic()  # of any living actor; how far they are
        self._first: float | None = None  # when an engine was open
        self._deaths, self._open_seconds, self._worked_seconds = 0, 0.0, 0.0

    def run(self, items: Sequence[Item] | None) -> Report:
        """Do all items."""
        with ExitStack() as bar:
            if items is None:
                self._grow(1)
            else:
                self._plan(items, bar)
            done = 0
            while self._waiting is None or self._left:
                for slot in self._ready():
                    try:
                        answer = slot.answer()
                    except Died as died:
                        self._replace(slot, died)
                        continue
                    self._say(slot, answer.said)
                    done += slot.phase is Phase.WORKING
                    self._next(slot, answer, bar)
                self._look()
            now = time.monotonic()
            for slot in self._slots:
                self._retire(slot)
        seconds = now - self._first if self._first is not None else 0.0
        idle = 1 - self._worked_seconds / self._open_seconds if self._open_seconds else 0.0
        return Report(done, self._deaths, seconds, idle)

    def close(self) -> None:
        """Stop all actors."""
        Slot.close_all(self._slots)

    def _plan(self, items: Sequence[Item], bar: ExitStack) -> None:
        """The items are known: take the actors for it."""
        self._waiting = sorted(items, key=lambda item: -item.cost)
        self._left = len(items)
        if items:
            total = sum(item.cost for item in items)
            self._progress = bar.enter_context(Progress(self._job.what, total, self._job.unit))
            self._grow(min(self._room.actors, len(items)) - len(self._slots))

    def _grow(self, number: int) -> None:
        for _ in range(number):
            self._slots.append(Slot.start(self._cluster.ray, self._room, next(self._numbers)))

    def _ready(self) -> Iterator[Slot]:
        """Actors that have an answer, or died; waits for one, but not for long."""
        calls = {slot.call: slot for slot in self._slots if slot.call is not None}
        ready, _ = self._cluster.ray.wait(list(calls), num_returns=1, timeout=POLL)
        self._heard = time.monotonic() if ready else self._heard
        return (calls[call] for call in ready)

    def _next(self, slot: Slot, answer: Answer, bar: ExitStack) -> None:
        """Take an answer, and ask the next."""
        if slot.phase is Phase.PLACING:
            slot.place = answer.value
            slot.ask(Phase.OPENING, "open", self._job.factory, slot.number, self._waiting is None)
            return
        if answer.failure is not None:
            self._fail(slot, answer.failure)
            return
        if slot.phase is Phase.OPENING:
            slot.opened = time.monotonic()
            self._first = self._first or slot.opened
            if self._waiting is None:
                self._plan(answer.value, bar)
        elif slot.item is not None:
            self._advance(slot, slot.item.cost)
            self._job.finished(slot.item, answer.value)
            slot.deaths, self._left = 0, self._left - 1
            slot.item_ends()
        self._give(slot)

    def _give(self, slot: Slot) -> None:
        if self._waiting:
            item = self._waiting.pop(self._choice(slot, self._waiting))
            slot.item, slot.group, slot.began, slot.done = item, item.group, time.monotonic(), 0.0
            slot.ask(Phase.WORKING, "do", item.work)
        else:
            slot.phase, slot.call = Phase.IDLE, None

    def _choice(self, slot: Slot, waiting: Sequence[Item]) -> int:
        """Which item an engine gets: of its own group, or of one that nobody is at, or the first."""
        others = {other.group for other in self._slots if other.item is not None}
        for wanted in (lambda item: item.group == slot.group, lambda item: item.group not in others):
            for index, item in enumerate(waiting):
                if wanted(item):
                    return index
        return 0

    def _fail(self, slot: Slot, failure: Failure) -> None:
        """An engine that says what is wrong would say it again elsewhere; but one bad node is not a reason to stop."""
        lines = failure.message.strip().splitlines() or [""]
        where = f"{slot.item.name}: " if slot.item is not None and not failure.expected else ""
        message = f"{f'{slot}: ' if self._several else ''}{where}{lines[-1]}"
        if not failure.expected:
            logger.info("%s", failure.message.rstrip())
        if slot.phase is not Phase.OPENING or self._first is None:
            raise ClusterError(message)
        logger.warning("%s; skipped, the other actors continue", message)
        self._slots.remove(slot)
        Slot.close_all([slot])
        if not self._slots:
            raise ClusterError(f"all actors failed; the last error was: {message}")

    def _replace(self, slot: Slot, died: Died) -> None:
        """A dead actor's item is given out again, and another takes its place."""
        self._deaths += 1
        lost = slot.place is not None and slot.place.node not in {node.name for node in self._cluster.nodes()}
        why = "its node was lost" if lost else str(died)
        if not died.started:
            raise ClusterError(f"an actor could not be started: {why}")
        item = slot.item
        if item is not None:
            self._advance(slot, 0.0)
            self._kills[item.name] += not lost
            if self._kills[item.name] >= KILLS:
                raise ClusterError(f"{item.name}: {KILLS} actors died on it, most recently {slot}: {why}")
            assert self._waiting is not None
            self._waiting.insert(0, item)
        deaths = slot.deaths + (not lost)
        if deaths >= DEATHS:
            raise ClusterError(f"{counted(DEATHS, 'actor')} died in a row, most recently {slot}: {why}")
        again = f", {item.name} is given out again" if item is not None else ""
        logger.warning("%s died (%s): replaced%s", slot, why, again)
        self._retire(slot)
        Slot.close_all([slot])
        new = Slot.start(self._cluster.ray, self._room, next(self._numbers))
        new.deaths = deaths
        self._slots[self._slots.index(slot)] = new
        for idle in [other for other in self._slots if other.phase is Phase.IDLE]:
            self._give(idle)

    def _look(self) -> None:
        """How far items are; whether there is room at all."""
        now = time.monotonic()
        if now - self._looked < max(POLL, len(self._slots) / 50):
            return
        self._looked = now
        for slot in self._slots:
            answer = slot.status()
            if answer is not None:
                self._say(slot, answer.said)
                if slot.item is not None:
                    self._advance(slot, min(answer.value, slot.item.cost))
        if any(slot.phase is not Phase.PLACING for slot in self._slots):
            self._heard = now
        elif now - self._heard > (self._seconds if self._first is None else ALONE):
            raise ClusterError(
                f"no room for any of {self._room} in {now - self._heard:.0f} s; {self._cluster}; "
                "ask for less, or wait longer with --ray-timeout"
            )

    def _advance(self, slot: Slot, done: float) -> None:
        if self._progress is not None:
            self._progress.advance(done - slot.done)
        slot.done = done

    def _say(self, slot: Slot, lines: Sequence[Said]) -> None:
        """What engines print is printed; what they log too, but once, as they all plan the same."""
        repeated = slot.phase is Phase.OPENING and self._waiting is not None  # the first has printed it
        for line in lines:
            if not line.printed and line.text not in self._said:
                self._said.add(line.text)
                logger.info("%s", line.text)
            elif line.printed and not repeated:
                say = self._progress.say if self._progress is not None else partial(print, flush=True)
                say(line.text)

    def _retire(self, slot: Slot) -> None:
        """Count the hours of an actor that ends."""
        slot.item_ends()
        self._worked_seconds += slot.worked
        if slot.opened is not None:
            self._open_seconds += time.monotonic() - slot.opened
