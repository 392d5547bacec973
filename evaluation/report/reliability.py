"""Reliability diagrams: how often the likeliest class is right, by how probable it is said to be."""

from __future__ import annotations

from collections.abc import Sequence

from logitbank.evaluation.report.charts import Chart, Series
from logitbank.evaluation.report.class_scores import Place, Scored, places_of, row_labels, scored_series
from logitbank.evaluation.report.class_table import where
from logitbank.evaluation.report.labels import Row, key_of
from logitbank.evaluation.report.results import Results
from logitbank.evaluation.report.statistics import CLASSIFIED
from logitbank.evaluation.report.units import PERCENT
from logitbank.preference import CLASSES
from logitbank.storage.results import SERIES
from logitbank.tasks.scoring.classes import BINS

IDEAL = "calibrated"


def reliability_charts(results: Results) -> list[Chart]:
    """One chart for each task and split that is scored by class probabilities: a line for each series."""
    scored = scored_series(results)
    if not scored:
        return []
    bins = _bins(results)
    charts = []
    for number, place in enumerate(places_of(scored)):
        own = [one for one in scored if one.place == place]
        series = [
            found
            for colour, (label, one) in enumerate(zip(row_labels(own), own, strict=True))
            if (found := _line(label, one, [row for row in bins if _belongs(row, one)], colour)) is not None
        ]
        if series:
            charts.append(_chart(number, place, series))
    return charts


def _chart(number: int, place: Place, series: list[Series]) -> Chart:
    caption = (
        f"{where(place)}: how often the likeliest class is right against how probable it was said to be, in {BINS} "
        "bins; on the dashed line a model is calibrated. ECE: mean distance to it."
    )
    lowest = 100 / len(CLASSES)  # the likeliest of C classes has at least this
    ideal = Series(IDEAL, [lowest, 100.0], [lowest, 100.0], colour=7, dashed=True)
    return Chart(
        f"reliability-{number}", caption, "lines", (), [*series, ideal], x_title="confidence, %", y_title="right, %"
    )


def _line(label: str, one: Scored, bins: Sequence[Row], colour: int) -> Series | None:
    """One series; None without predictions."""
    if not bins:
        return None
    ece = one.values.get("ece")
    name = label if ece is None else f"{label}, ECE {PERCENT.text(ece)}%"
    x, y = ([round(100 * row[column], 2) for row in bins] for column in ("confidence", "accuracy"))
    total = sum(row["examples"] for row in bins)
    said = [f"{row['examples']:,} of {total:,}" for row in bins]
    return Series(name, x, y, colour=colour, said=said)


def _belongs(row: Row, one: Scored) -> bool:
    return (key_of(row), row["task"], row["language"], row["split"]) == (key_of(one.row), *one.place)


def _bins(results: Results) -> Sequence[Row]:
    """Each bin of each series that holds predictions, over all of its students, by confidence."""
    confidence = ", ".join(f"s['p_{name}']" for name in CLASSES)
    return results.catalogue.rows(
        f"""
        WITH shown AS (
            SELECT {", ".join(f"f.{name}" for name in SERIES.split(", "))}, f.task, f.language, f.split,
                   p.statistics AS s
            FROM predictions AS p JOIN final_scores AS f USING (run, task, language)
            WHERE f.is_primary AND f.method = '{CLASSIFIED}' AND p.method = '{CLASSIFIED}'),
        said AS (SELECT *, greatest({confidence}) AS said, s['accuracy'] AS likeliest FROM shown),
        binned AS (SELECT *, greatest(least(ceil(said * {BINS})::INT - 1, {BINS} - 1), 0) AS bin FROM said)
        SELECT {SERIES}, task, language, split, bin,
               avg(said) AS confidence, avg(likeliest) AS accuracy, count(*) AS examples
        FROM binned GROUP BY ALL ORDER BY bin
        """
    )
