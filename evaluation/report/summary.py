"""The averages of every model and condition, as a table and in words."""

from __future__ import annotations

from collections.abc import Sequence

from logitbank.errors import counted
from logitbank.evaluation.report.caveats import step_notes
from logitbank.evaluation.report.class_table import class_sentences
from logitbank.evaluation.report.gaps import gap_sentences
from logitbank.evaluation.report.labels import Row, ordered_columns, ordered_conditions, ordered_models
from logitbank.evaluation.report.likelihood_table import likelihood_sentences
from logitbank.evaluation.report.results import Results
from logitbank.evaluation.report.table import MISSING, Table, average, percent

MANY_FAILURES = 0.05
INTERVAL_NOTE = (
    "±: half of the 95% bootstrap interval over the evaluated examples, with the trained weights as given; training "
    "again with another seed adds to it. [low, high]: the bounds, where the interval is lopsided. Published numbers "
    "have no interval, because their predictions are not here."
)
AVERAGES = {
    "task_language_mean": "mean over all (task, language) cells, each counting once",
    "task_mean": "mean over tasks of their mean over languages, each task counting once",
}


def summary_tables(results: Results) -> list[Table]:
    """One table for each kind of average: models as rows, conditions as columns."""
    labels, shown = results.labels, results.main_averages
    columns = ordered_columns(shown, labels)
    left_out = len(results.averages) - len(shown)
    tables = []
    for name, meaning in AVERAGES.items():
        rows = []
        for model in ordered_models(shown):
            by_column = {labels.column(row): row for row in shown if row["model"] == model}
            texts = [results.mean_text(by_column[c], name) if c in by_column else MISSING for c in columns]
            rows.append([labels.models[model], *texts])
        notes = [f"`{name}`, in %: {meaning}. (n/m): only n of the m cells that any model has."]
        notes += results.left_out(results.task_averages)
        if name == list(AVERAGES)[-1]:
            notes += [INTERVAL_NOTE, *step_notes(shown, labels.series)]
            if left_out:
                notes.append(f"The tables `λ sweep` show {counted(left_out, 'more row')} of imported λ sweeps.")
        if rows:
            tables.append(Table(f"Summary per condition: {name}", ["model", *columns], rows, notes))
    return tables


def summary_lines(results: Results) -> list[str]:
    """What the rows say in a few sentences: how much there is, the averages, which gaps are resolved."""
    said = [*gap_sentences(results), *likelihood_sentences(results), *class_sentences(results)]
    return [counts_line(results), *average_lines(results), *said, *failure_lines(results)]


def counts_line(results: Results) -> str:
    """How much there is."""
    count = results.catalogue.rows(
        "SELECT coalesce(sum(examples), 0)::BIGINT AS answers, count(DISTINCT run) AS runs FROM example_statistics"
    )[0]
    conditions = {row["condition"] for row in results.task_averages}
    cells = {(cell["task"], cell["language"]) for cell in results.cells}
    models = ordered_models(results.task_averages)
    return (
        f"{counted(len(models), 'model')} under {counted(len(conditions), 'condition')} in "
        f"{counted(len(cells), 'cell')}; {counted(count['answers'], 'prediction')} of "
        f"{counted(count['runs'], 'evaluation')}."
    )


def average_lines(results: Results) -> list[str]:
    """`task_language_mean` of each model, condition by condition; of several variants the lowest and highest."""
    labels, shown = results.labels, results.main_averages
    lines = []
    for model in ordered_models(shown):
        own = [row for row in shown if row["model"] == model]
        texts = []
        for condition in ordered_conditions(row["condition"] for row in own):
            rows = [row for row in own if row["condition"] == condition]
            texts.append(f"{condition} {_range(results, rows)}")
        lines.append(f"{labels.models[model]}, `task_language_mean` in %: {', '.join(texts)}.")
    return lines


def _range(results: Results, rows: Sequence[Row]) -> str:
    if len(rows) == 1:
        return results.mean_text(rows[0], "task_language_mean")
    rows = sorted(rows, key=lambda row: float(row["task_language_mean"]))
    low, high = (average(r["task_language_mean"], r["cells"], r["expected_cells"]) for r in (rows[0], rows[-1]))
    return f"{low} to {high} ({counted(len(rows), 'variant')})"


def failure_lines(results: Results) -> list[str]:
    """Where many answers could not be read."""
    failures: Sequence[Row] = results.catalogue.rows(
        f"SELECT * FROM cells WHERE metric = 'parse_failure' AND value > {MANY_FAILURES} ORDER BY value DESC"
    )
    if not failures:
        return []
    worst = failures[0]
    where = f"{results.labels.series(worst)}, {worst['task']}/{worst['language']}"
    return [
        f"More than {100 * MANY_FAILURES:.0f}% of the answers could not be read in {counted(len(failures), 'cell')}, "
        f"at worst {percent(worst['value'])}% ({where})."
    ]
