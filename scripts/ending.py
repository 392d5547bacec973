"""How a study ends: five lines, and a report to read."""

from __future__ import annotations

import shlex
import time
from collections.abc import Sequence
from pathlib import Path


class Ending:
    """Made when a study begins, printed when it is done.

    Attributes:
        output: directory of the study; its rows are in `output/results`.
        stores: of teachers, for the report.
    """

    def __init__(self, output: Path, stores: Sequence[str] = ()) -> None:
        self.output, self.stores = output, stores
        self._started = time.monotonic()

    def print(self, *, tables: bool = False) -> None:
        """Write `report.md` and `report.html`; say where, how long, the averages, what is resolved, and the report.

        Args:
            tables: whether to print the overview of tasks and conditions before that.

        Raises:
            StoreError, ConfigError: results that cannot be read, or a place that cannot be written.
        """
        from logitbank.scripts.findings import Findings  # DuckDB and scipy: not for --help

        found = Findings.of(self.output / "results", self.stores)
        page = found.write_report(self.output / "report.md")
        if tables:
            print()
            found.print_overview()
        place = shlex.quote(str(self.output))
        averages = "; ".join(found.averages())
        resolved = "; ".join([*(found.resolved() if averages else ()), *found.of_classes()])
        lines = {
            "where": f"{place}: stores, students, and the rows that query-results reads, in results/",
            "took": duration(time.monotonic() - self._started),
            **({"averages": f"task_mean in %: {averages}"} if averages else {}),
            "resolved": resolved or "there are no two students to compare",
            "report": f"{shlex.quote(str(page))} (and report.md)",
        }
        print("\n" + "\n".join(f"{name:9} {text}" for name, text in lines.items()), flush=True)


def duration(seconds: float) -> str:
    """Seconds, to read: `41 s`, `3 min 20 s`, `2 h 5 min`."""
    minutes, rest = divmod(round(seconds), 60)
    if not minutes:
        return f"{rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"
