"""Tasks of other people, as far as result rows alone say what they are.

Results outlive the file that a task was. Its metrics cannot be formed anew without it; but where the primary metric is
the mean of one of its statistics, as for anything that is right or wrong, the rows show that it is.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from logitbank.storage.results import Catalogue
from logitbank.tasks import TASKS


class Scored(Protocol):
    """What intervals need of a task; see `tasks.Task`."""

    @property
    def name(self) -> str:
        """Of the task."""

    @property
    def primary_metric(self) -> str:
        """What averages are formed of."""

    def metrics(self, means: Mapping[str, Any]) -> dict[str, Any]:
        """Metrics from the means of the statistics over examples."""


@dataclass(frozen=True)
class MeanOfAStatistic:
    """A task whose primary metric is the mean of one statistic.

    Attributes:
        name: of the task.
        primary_metric: its name.
        statistic: of which it is the mean.
    """

    name: str
    primary_metric: str
    statistic: str

    def metrics(self, means: Mapping[str, Any]) -> dict[str, Any]:
        """The primary metric."""
        return {self.primary_metric: means[self.statistic]}


def scored_task(catalogue: Catalogue, name: str) -> Scored | None:
    """The task of that name: the package's own, what the rows say of another, or that of an installed package.

    None if the rows do not say enough, and nothing is installed.
    """
    if name in TASKS.shipped:
        task: Scored = TASKS[name]
        return task
    rows = f"FROM predictions WHERE task = {_quoted(name)} AND method = 'generate'"
    exact = [
        row["statistic"]
        for row in catalogue.rows(
            f"""
            SELECT item.key AS statistic
            FROM (SELECT score, unnest(map_entries(statistics)) AS item {rows})
            GROUP BY item.key HAVING bool_and(item.value = score) AND count(*) = (SELECT count(*) {rows})
            ORDER BY item.key
            """
        )
    ]
    cells = catalogue.rows(
        f"""
        SELECT metrics.metric, metrics.value, scored.mean
        FROM metrics JOIN (SELECT run, language, avg(score) AS mean {rows} GROUP BY run, language) AS scored
          USING (run, language)
        WHERE task = {_quoted(name)} AND method = 'generate' AND is_primary
        """
    )
    primary = {cell["metric"] for cell in cells}
    if exact and len(primary) == 1 and all(math.isclose(cell["value"], cell["mean"]) for cell in cells):
        return MeanOfAStatistic(name, primary.pop(), exact[0])
    return TASKS.get(name)


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
