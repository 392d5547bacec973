"""What λ does: scores at each fixed λ, and where learned λ ended."""

from __future__ import annotations

from collections.abc import Sequence

from logitbank.evaluation.report.labels import (
    Row,
    in_brackets,
    ordered_conditions,
    ordered_models,
    ordered_tasks,
    setup_labels,
)
from logitbank.evaluation.report.results import Results
from logitbank.evaluation.report.table import MISSING, UNRESOLVED, Table, average, difference_with_interval


def sweep_tables(results: Results) -> list[Table]:
    """For each model distilled with several λ: λ as rows, tasks and their difference to finetuned as columns."""
    rows = results.catalogue.rows("SELECT * FROM lambda_sweep")
    tables = []
    for model in ordered_models(rows):
        own = [row for row in rows if row["model"] == model]
        labels = dict(zip((row["setup"] for row in own), setup_labels(own), strict=True))
        for setup in sorted(labels):
            swept = [row for row in own if row["setup"] == setup]
            if len({row["lambda_distill"] for row in swept}) > 1:
                title = in_brackets(
                    f"λ sweep: {results.labels.models[model]}", labels[setup] if len(labels) > 1 else ""
                )
                tables.append(_sweep_table(results, swept, title))
    return tables


def learned_lambda_table(results: Results) -> list[Table]:
    """λ by task at the end of every training run whose strategy is not a fixed λ; none without such a run."""
    rows = results.catalogue.rows(
        "SELECT * FROM training_ends WHERE metric = 'lambda' AND coalesce(strategy, 'fixed') <> 'fixed' ORDER BY run"
    )
    if not rows:
        return []
    tasks = ordered_tasks(row["task"] for row in rows if row["task"] != "all")
    shown = []
    for run in dict.fromkeys(row["run"] for row in rows):
        own = {row["task"]: row for row in rows if row["run"] == run}
        first = next(iter(own.values()))
        values = [f"{own[task]['value']:.3f}" if task in own else MISSING for task in [*tasks, "all"]]
        start = MISSING if first["lambda_distill"] is None else f"{first['lambda_distill']:g}"
        shown.append([run, first["strategy"], str(first["step"]), start, *values])
    header = ["training run", "strategy", "step", "configured λ", *tasks, "all tokens"]
    return [Table("λ at the end of training", header, shown, ["Mean λ over answer tokens since the last log step."])]


def _sweep_table(results: Results, own: Sequence[Row], title: str) -> Table:
    tasks = ordered_tasks(row["task"] for row in own)
    order = ordered_conditions(row["condition"] for row in own)
    by_series: dict[tuple[int, float, str], dict[str, Row]] = {}
    for row in own:
        series = (order.index(row["condition"]), row["lambda_distill"], row["taught_by"])
        by_series.setdefault(series, {})[row["task"]] = row
    shown = []
    for condition, value, taught_by in sorted(by_series):
        by_task = by_series[condition, value, taught_by]
        several = len({other for place, _, other in by_series if place == condition}) > 1
        label = in_brackets(f"{order[condition]} λ={value:g}", taught_by if several else "")
        texts = []
        for task in tasks:
            found = by_task.get(task)
            texts.append(results.task_average(found) if found else MISSING)
            texts.append(_difference_to_finetuned(results, found) if found else MISSING)
        shown.append([label, *texts])
    header = ["condition", *(name for task in tasks for name in (task, f"{task} −finetuned"))]
    note = (
        "`language_mean` in % and its difference to finetuned in points, by a paired bootstrap over the same examples. "
        f"{UNRESOLVED}: the interval contains zero."
    )
    return Table(title, header, shown, [note], groups=range(1, len(header), 2))


def _difference_to_finetuned(results: Results, row: Row) -> str:
    if row["difference_to_finetuned"] is None:
        return MISSING
    found = results.gap_interval({**row, "gap": f"{row['condition']}-finetuned"})
    value = row["difference_to_finetuned"]
    shown = average(value, row["compared_languages"], row["languages"], signed=True)
    return difference_with_interval(shown, value, found)
