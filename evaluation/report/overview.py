"""For each model: tasks as rows, conditions and the gaps between them as columns."""

from __future__ import annotations

from logitbank.evaluation.report.caveats import caveats
from logitbank.evaluation.report.gaps import GAP_NOTE, gap_columns, main_gaps
from logitbank.evaluation.report.labels import in_brackets, ordered_columns, ordered_models, ordered_tasks
from logitbank.evaluation.report.results import Results
from logitbank.evaluation.report.table import MISSING, Table


def overview_tables(results: Results) -> list[Table]:
    """One table for each model; imported λ sweeps have tables of their own."""
    return [_overview(results, model) for model in ordered_models(results.main_averages)]


def _overview(results: Results, model: str) -> Table:
    labels = results.labels
    means = {labels.column(row): row for row in results.main_averages if row["model"] == model}
    columns = ordered_columns(list(means.values()), labels)
    own = [row for column in columns for row in results.primary_tasks(means[column])]
    gaps = gap_columns(main_gaps(results, model))
    rows = []
    for task in ordered_tasks(row["task"] for row in own):
        cells = {labels.column(row): row for row in own if row["task"] == task}
        texts = [results.task_average(cells[c]) if c in cells else MISSING for c in columns]
        texts += [results.gap(by_task[task]) if task in by_task else MISSING for *_, by_task in gaps]
        metric = next(row["metric"] for row in own if row["task"] == task)
        rows.append([f"{task} ({metric})", *texts])
    averages = [results.mean_text(means[column], "task_mean") for column in columns]
    rows.append(["task_mean", *averages, *(MISSING for _ in gaps)])
    notes = ["Rows: `language_mean`, the mean over languages, in %.", *([GAP_NOTE] if gaps else [])]
    notes += results.left_out(own)
    notes += caveats(results, [means[column] for column in columns])
    header = ["task", *columns, *(in_brackets(name, detail) for name, detail, _ in gaps)]
    return Table(f"Overview: {labels.models[model]}", header, rows, notes, groups=[1 + len(columns)])
