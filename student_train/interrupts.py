"""Ctrl-C and SIGTERM end a training run after the step it is in, with a checkpoint."""

from __future__ import annotations

import logging
import signal
import threading
from types import FrameType, TracebackType

import torch
from accelerate import Accelerator

from logitbank.command import Terminated

logger = logging.getLogger(__name__)

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopSignals:
    """While it is entered, the first signal asks for a stop after the running step, which all ranks make together.

    A second one stops a single process at once; several ranks get every signal more than once, from the terminal and
    from their launcher, and ignore what follows the first. Only a main thread can catch signals: elsewhere they do
    what they did before.
    """

    def __init__(self, accelerator: Accelerator) -> None:
        self._accelerator = accelerator
        self._received = 0
        self._before: dict[int, object] = {}
        # over the hosts' own connections: asking a device would wait for it at every step
        several = accelerator.num_processes > 1
        self._group = torch.distributed.new_group(backend="gloo") if several else None

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._receive) for number in SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        if self._group is not None and error is None:
            torch.distributed.destroy_process_group(self._group)

    def asked(self) -> int:
        """The signal that any rank received, or 0; every rank calls this once a step."""
        if self._group is None:
            return self._received
        number = torch.tensor(self._received)
        torch.distributed.all_reduce(number, torch.distributed.ReduceOp.MAX, group=self._group)
        return int(number)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self._received and self._group is None:
            raise _stop(number, "")
        if not self._received and self._accelerator.is_main_process:
            logger.info("%s: saving a checkpoint after this step", signal.Signals(number).name)
        self._received = self._received or number


def stopped(number: int, step: int, *, says: bool) -> BaseException:
    """What a run raises that a signal ended after a step whose checkpoint is saved.

    The command prints the message of the process that `says` it; the others end with the same exit code.
    """
    if not says:
        return SystemExit(128 + number)
    said = "Terminated" if number == signal.SIGTERM else "Interrupted"
    return _stop(number, f"{said} after step {step}; its checkpoint is saved, run the same command to resume from it")


def _stop(number: int, message: str) -> KeyboardInterrupt:
    kind = Terminated if number == signal.SIGTERM else KeyboardInterrupt
    return kind(message) if message else kind()
