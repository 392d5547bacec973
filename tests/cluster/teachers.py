"""Actors with a teacher that has no model, which may die in the midst of a shard."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

from logitbank.teacher_cache.on_ray import TeacherActor, actor_worker
from tests.teacher_cache.fakes import FakeTeacher, session


@dataclass(frozen=True)
class Settings:
    """What the actors share.

    Attributes:
        store: that they fill.
        folder: where they leave traces: a file for each process, a letter for each death.
        deaths: how many of them end by SIGKILL, each at its third batch.
        together: batches wait until there were so many actors, and while there is a file `hold` among the traces.
    """

    store: Path
    folder: Path
    deaths: int = 0
    together: int = 1


def make(settings: Settings, number: int) -> TeacherActor:
    """The engine of an actor."""
    folder, batches, opened = settings.folder, 0, False
    (folder / f"{number}-{os.getpid()}").touch()

    def before(batch: object) -> None:
        nonlocal batches
        batches += 1
        while opened and ((folder / "hold").exists() or len(processes(folder)) < settings.together):
            time.sleep(0.02)
        died = folder / "deaths"
        if batches == 3 and len(died.read_text() if died.exists() else "") < settings.deaths:
            with died.open("a") as file:
                file.write("x")
            os.kill(os.getpid(), signal.SIGKILL)

    worker = actor_worker(number)
    actor = TeacherActor(session(settings.store, FakeTeacher(before), worker=worker))
    opened = True
    return actor


def processes(folder: Path) -> list[int]:
    """Of all actors that there were."""
    return [int(file.name.split("-")[1]) for file in folder.glob("*-*")]
