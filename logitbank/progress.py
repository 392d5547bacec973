"""How far long work is: one bar for the whole command in a terminal, and a line every half minute without one."""

from __future__ import annotations

import sys
import threading
import time
from types import TracebackType
from typing import Any

from tqdm import tqdm

SECONDS_BETWEEN_LINES = 30.0


class Progress:
    """Progress of one piece of work, from its start to the end of the `with` block; written to standard error.

    Where standard error is not a terminal, a thread of its own writes the lines, so that they come however long a
    single step takes.
    """

    def __init__(self, what: str, total: float | None, unit: str, *, quiet: bool = False) -> None:
        """Describe the work.

        Args:
            what: what is done (`teacher`, `base`).
            total: how much there is to do, in units; None if nobody knows.
            unit: plural name of what is counted (`tokens`, `answers`).
            quiet: show nothing, as all processes but one should.
        """
        self._what, self._total, self._unit, self._quiet = what, total, unit, quiet
        self._done = 0.0
        self._started = time.monotonic()
        self._bar: tqdm[Any] | None = None
        self._ended = threading.Event()
        self._writer: threading.Thread | None = None

    def __enter__(self) -> Progress:
        self._started = time.monotonic()
        if not self._quiet and sys.stderr.isatty():
            self._bar = tqdm(
                total=self._total,
                desc=self._what,
                unit=f" {self._unit}",
                unit_scale=self._total is not None and self._total >= 100_000,
                leave=False,
                dynamic_ncols=True,
                bar_format="{desc}: {percentage:3.0f}%|{bar}| {n:.0f}/{total:.0f}{unit} [{elapsed}<{remaining}]"
                if self._total is not None and self._total < 100_000
                else None,
            )
        elif not self._quiet:
            self._writer = threading.Thread(target=self._write_lines, daemon=True)
            self._writer.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        if self._writer is not None:
            self._writer.join()
        if self._bar is not None:
            self._bar.close()

    def advance(self, count: float) -> None:
        """Count more of the work as done; a negative count takes some back that has to be done again."""
        self._done += count
        if self._bar is not None:
            self._bar.update(count)

    def say(self, text: str) -> None:
        """Print a line to standard output, above the bar if there is one."""
        if self._bar is not None:
            self._bar.write(text, file=sys.stdout)
        else:
            print(text, flush=True)

    def line(self) -> str:
        """How far the work is, in words: `base: 1,200 of 14,000 answers (9%), 3:20 left`."""
        if self._total is None:
            return f"{self._what}: {self._done:,.0f} {self._unit}"
        done = f"{self._what}: {self._done:,.0f} of {self._total:,.0f} {self._unit}"
        if not 0 < self._done <= self._total:
            return done
        left = (time.monotonic() - self._started) * (self._total - self._done) / self._done
        minutes, seconds = divmod(round(left), 60)
        hours, minutes = divmod(minutes, 60)
        clock = f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
        return f"{done} ({100 * self._done / self._total:.0f}%), {clock} left"

    def _write_lines(self) -> None:
        while not self._ended.wait(SECONDS_BETWEEN_LINES):
            print(self.line(), file=sys.stderr, flush=True)
