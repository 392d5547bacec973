"""For each model: tasks as rows, conditions and the gaps between them as columns."""

from __future__ import annotations

from logitbank.evaluation.report.gaps import GAP_NOTE, gap_columns
from logitbank.evaluation.report.labels import is_imported_sweep, ordered_columns, ordered_models, ordered_tasks
from logitbank.evaluation.report.results import Results
from logitbank.evaluation.report.table import MISSING, Table


def overview_tables(results: Results) -> list[Table]:
    """One table for each model; imported λ sweeps have tables of their own."""
    shown = [row for row in results.task_averages if row["is_primary"] and not is_imported_sweep(row, results.averages)]
    return [_overview(results, model) for model in ordered_models(shown)]


def _overview(results: Results, model: str) -> Table:
    labels = results.labels
    own = [
        row
        for row in results.task_averages
        if row["is_primary"] and row["model"] == model and not is_imported_sweep(row, results.averages)
    ]
    columns = ordered_columns(own, labels)
    kept = {(row["setup"], row["variant"]) for row in own}
    gaps = gap_columns(
        [row for row in results.task_gaps if row["model"] == model and (row["setup"], row["variant"]) in kept]
    )
    rows = []
    for task in ordered_tasks(row["task"] for row in own):
        cells = {labels.column(row): row for row in own if row["task"] == task}
        texts = [results.task_average(cells[c]) if c in cells else MISSING for c in columns]
        texts += [results.gap(by_task[task]) if task in by_task else MISSING for _, by_task in gaps]
        metric = next(row["metric"] for row in own if row["task"] == task)
        rows.append([f"{task} ({metric})", *texts])
    means = {labels.column(row): row for row in results.main_averages if row["model"] == model}
    averages = [results.mean_text(means[column], "task_mean") for column in columns]
    rows.append(["task_mean", *averages, *(MISSING for _ in gaps)])
    notes = ["Rows: `language_mean`, the mean over languages, in %.", *([GAP_NOTE] if gaps else [])]
    if any(row["seeds"] > 1 for row in means.values()):
        notes.append("Seeds: " + ", ".join(f"{column} {means[column]['seeds']}" for column in columns) + ".")
    header = ["task", *columns, *(name for name, _ in gaps)]
    return Table(f"Overview: {labels.models[model]}", header, rows, notes, groups=[1 + len(columns)])
