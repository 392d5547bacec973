"""Tables beyond scores per condition: transfer, checkpoints, λ, and what training saw."""

from __future__ import annotations

from collections.abc import Sequence

from logitbank.evaluation.report.labels import Row, key_of, ordered_conditions, ordered_tasks, setup_label, short_names
from logitbank.evaluation.report.render import MISSING, Table, average, percent
from logitbank.evaluation.report.result_tables import UNRESOLVED, Results, cell_key, with_interval
from logitbank.storage.results.catalogue import Catalogue


def more_tables(catalogue: Catalogue, results: Results) -> list[Table]:
    """Those of the tables below that have something to show."""
    return [
        *transfer_table(catalogue, results),
        *checkpoint_tables(catalogue, results),
        *sweep_tables(catalogue, results),
        *learned_lambda_table(catalogue),
        *cross_entropy_table(catalogue),
    ]


def transfer_table(catalogue: Catalogue, results: Results) -> list[Table]:
    """English against the mean of the other languages, over tasks that have both."""
    rows = [row for row in catalogue.rows("SELECT * FROM transfer_gaps") if row["transfer_gap"] is not None]
    if not rows:
        return []
    tasks = ordered_tasks(row["task"] for row in rows)
    shown = []
    order = ordered_conditions(row["condition"] for row in rows)
    for key in sorted({key_of(row) for row in rows}, key=lambda key: (key[0], order.index(key[1]), key[2:])):
        own = {row["task"]: row for row in rows if key_of(row) == key}
        any_row = next(iter(own.values()))
        cells = [cell for cell in results.cells_of(any_row) if cell["task"] in own]
        english = _mean([cell["value"] for cell in cells if cell["language"] == "en"])
        others = _mean([cell["value"] for cell in cells if cell["language"] != "en"])
        gaps = [
            _transfer_gap(results, own[task]["transfer_gap"], [cell for cell in cells if cell["task"] == task])
            if task in own
            else MISSING
            for task in tasks
        ]
        text = [percent(english), percent(others), _transfer_gap(results, english - others, cells)]
        shown.append([results.labels.series(any_row), *text, *gaps])
    header = ["model and condition", "English", "other languages", "gap", *(f"{task} gap" for task in tasks)]
    note = (
        "English → X transfer gap in points: English minus the mean over all cells of other languages, same tasks. "
        f"{UNRESOLVED}: the interval contains zero."
    )
    return [Table("Transfer gap", header, shown, [note])]


def _transfer_gap(results: Results, gap: float, cells: Sequence[Row]) -> str:
    english = [cell_key(cell) for cell in cells if cell["language"] == "en"]
    others = [cell_key(cell) for cell in cells if cell["language"] != "en"]
    metric = {cell["task"]: cell["metric"] for cell in cells}
    return with_interval(
        percent(gap, signed=True), results.replicates.contrast(english, others, metric), difference=True
    )


def checkpoint_tables(catalogue: Catalogue, results: Results) -> list[Table]:
    """For each task evaluated at more than one step: steps as columns, `language_mean` as values."""
    rows = catalogue.rows("SELECT * FROM checkpoint_curves ORDER BY step")
    tables = []
    for task in ordered_tasks(row["task"] for row in rows):
        own = [row for row in rows if row["task"] == task]
        steps = sorted({row["step"] for row in own})
        if len(steps) < 2:
            continue
        shown = []
        for key in sorted({key_of(row) for row in own}):
            by_step = {row["step"]: row for row in own if key_of(row) == key}
            texts = [_at_step(results, by_step[step]) if step in by_step else MISSING for step in steps]
            shown.append([results.labels.series(next(iter(by_step.values()))), *texts])
        metric = own[0]["metric"]
        header = ["model and condition", *(f"step {step}" for step in steps)]
        note = "`language_mean` of each checkpoint, in %."
        tables.append(Table(f"Checkpoints: {task} ({metric})", header, shown, [note]))
    return tables


def _at_step(results: Results, row: Row) -> str:
    cells = [cell_key(cell) for cell in results.cells_of(row, task=row["task"])]
    shown = average(row["language_mean"], row["languages"], row["expected_languages"])
    return with_interval(shown, results.replicates.at_step(cells, row["step"]))


def sweep_tables(catalogue: Catalogue, results: Results) -> list[Table]:
    """For each model distilled with several λ: λ as rows, tasks and their difference to finetuned as columns."""
    rows = catalogue.rows("SELECT * FROM lambda_sweep")
    tables = []
    for model, setup in sorted({(row["model"], row["setup"]) for row in rows}):
        own = [row for row in rows if (row["model"], row["setup"]) == (model, setup)]
        if len({row["lambda_distill"] for row in own}) < 2:
            continue
        several = len({row["setup"] for row in rows if row["model"] == model}) > 1
        detail = f" ({setup_label(setup)})" if several else ""
        tables.append(_sweep_table(results, own, f"λ sweep: {results.labels.models[model]}{detail}"))
    return tables


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
    return Table(title, header, shown, [note])


def _difference_to_finetuned(results: Results, row: Row) -> str:
    if row["difference_to_finetuned"] is None:
        return MISSING
    found = results.gap_interval({**row, "gap": f"{row['condition']}-finetuned"})
    return with_interval(percent(row["difference_to_finetuned"], signed=True), found, difference=True)


def learned_lambda_table(catalogue: Catalogue) -> list[Table]:
    """λ by task at the end of every training run whose strategy is not a fixed λ."""
    rows = catalogue.rows(
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


def cross_entropy_table(catalogue: Catalogue) -> list[Table]:
    """Student's and teacher's cross-entropy on the gold answers at the end of every training run."""
    rows = catalogue.rows(
        "SELECT * FROM training_ends WHERE task = 'all' AND metric IN ('student_ce', 'teacher_ce', 'kd', 'loss')"
    )
    if not rows:
        return []
    names = short_names(row["model"] for row in rows)
    shown = []
    for run in sorted({row["run"] for row in rows}, key=lambda run: _run_order(rows, run)):
        own = {row["metric"]: row for row in rows if row["run"] == run}
        first = next(iter(own.values()))
        values = [f"{own[m]['value']:.4f}" if m in own else MISSING for m in ("student_ce", "teacher_ce", "kd", "loss")]
        label = f"{names[first['model']]} {first['condition'] or ''}".strip()
        seed = MISSING if first["seed"] is None else str(first["seed"])
        shown.append([label, seed, str(first["step"]), *values])
    header = ["training run", "seed", "step", "student CE", "teacher CE", "KD", "loss"]
    note = "Nats per answer token on the training batches since the last log step, the teacher's from the store."
    return [Table("Student and teacher cross-entropy", header, shown, [note])]


def _run_order(rows: Sequence[Row], run: str) -> tuple[str, int, str]:
    first = next(row for row in rows if row["run"] == run)
    order = ordered_conditions(row["condition"] or "" for row in rows)
    return first["model"], order.index(first["condition"] or ""), run


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
