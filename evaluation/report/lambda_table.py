"""What λ does: scores at each fixed λ, and where learned λ ended."""

from __future__ import annotations

from collections.abc import Sequence

from logitbank.evaluation.report.labels import Row, ordered_conditions, ordered_tasks, setup_label
from logitbank.evaluation.report.results import Results
from logitbank.evaluation.report.table import MISSING, UNRESOLVED, Table, difference_with_interval, percent


def sweep_tables(results: Results) -> list[Table]:
    """For each model distilled with several λ: λ as rows, tasks and their difference to finetuned as columns."""
    rows = results.catalogue.rows("SELECT * FROM lambda_sweep")
    tables = []
    for model, setup in sorted({(row["model"], row["setup"]) for row in rows}):
        own = [row for row in rows if (row["model"], row["setup"]) == (model, setup)]
        if len({row["lambda_distill"] for row in own}) < 2:
            continue
        several = len({row["setup"] for row in rows if row["model"] == model}) > 1
        detail = f" ({setup_label(setup)})" if several else ""
        tables.append(_sweep_table(results, own, f"λ sweep: {results.labels.models[model]}{detail}"))
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
    shown = []
    for condition in ordered_conditions(row["condition"] for row in own):
        for value in sorted({row["lambda_distill"] for row in own if row["condition"] == condition}):
            by_task = {
                row["task"]: row for row in own if (row["condition"], row["lambda_distill"]) == (condition, value)
            }
            texts = []
            for task in tasks:
                row = by_task.get(task)
                texts.append(results.task_average(row) if row else MISSING)
                texts.append(_difference_to_finetuned(results, row) if row else MISSING)
            shown.append([f"{condition} λ={value:g}", *texts])
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
    shown = percent(row["difference_to_finetuned"], signed=True)
    return difference_with_interval(shown, row["difference_to_finetuned"], found)
