"""What inspect-cache prints."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from logitbank.authorship import describe_answers, remarks_on_answers
from logitbank.progress import Progress
from logitbank.storage import LabelStore, StoreError, is_label_store, parts_to_verify, verify, verify_labels
from logitbank.teacher_cache.inspection.labels import unproven_folds
from logitbank.teacher_cache.inspection.summary import Inspection
from logitbank.teacher_cache.tables import print_table


def show_verification(url: str, output: str) -> None:
    """Say whether a store is sound, as text or JSON.

    Raises:
        StoreError: it is not.
    """
    labels = _holds_labels(url)
    with Progress("verify", parts_to_verify(url), "parts") as progress:
        problems = (verify_labels if labels else verify)(url, lambda what: progress.advance(1))
    unproven = unproven_folds(LabelStore.open(url)) if labels and not problems else {}
    if output == "json":
        about = {"store": url, "sound": not problems, "problems": problems}
        print(json.dumps(about | ({"unproven_folds": unproven} if labels else {}), indent=2))
    elif problems:
        print("\n".join(problems))
    else:
        proven = labels and not unproven
        say = "every fold was scored by who had not seen its prompts" if proven else "all values are consistent"
        print(f"{url}: sound: every object matches its manifest, and {say}")
        for view, folds in unproven.items():
            named = ", ".join(map(str, folds))
            print(
                f"view {view}: not proven out of fold: it is not recorded what the teachers of folds {named} were "
                "trained on"
            )
    if problems:
        raise StoreError(f"--store {shlex.quote(url)}: {len(problems)} problem{'s' if len(problems) > 1 else ''} found")


def _holds_labels(url: str) -> bool:
    try:
        return is_label_store(url)
    except StoreError:  # a damaged root is a problem in either kind
        return False


def show_summary(inspection: Inspection, output: str) -> None:
    """What a store holds, as text or JSON."""
    facts = inspection.summary()
    if output == "json":
        print(json.dumps(facts, indent=2))
        return
    split = "" if facts["split"] == "train" else f", {facts['split']} split"
    draws = f" and {facts['draws']} draws, {facts['signal']}" if facts["draws"] else ""
    print(
        f"{facts['store']}: {facts['examples']:,} examples, {facts['answer_tokens']:,} answer tokens{split}\n"
        f"top {facts['top_k']}{draws} ({facts['encoding']}), {facts['bytes'] / 1e6:,.1f} MB = "
        f"{facts['bytes_per_answer_token_and_view']:,.0f} bytes per answer token and view\n"
        f"teacher {facts['teacher'].get('model', facts['model'])} ({facts['teacher'].get('dtype', '?')})\n"
        f"fingerprint {facts['fingerprint']}"
    )
    if facts["answers"] is not None:
        print(describe_answers(facts["answers"]))
        teacher = facts["teacher"].get("model", facts["model"])
        for remark in remarks_on_answers(facts["answers"], teacher):
            print(f"warning: {remark}")
    for view, about in facts["views"].items():
        state = "complete" if about["complete"] else f"{about['missing_shards']} of {about['shards']} shards missing"
        dropped = sum(about.get("demonstrations_dropped", {}).values())
        print(
            f"view {view}: {state}, {about.get('demonstrations', 0):,} demonstrations, {dropped:,} dropped for length\n"
            f"  fingerprint {about['fingerprint']}"
        )
        if about["bounded"]:
            print(f"  bounded: {', '.join(about['bounded'])} (what needs these exactly refuses the view)")
    if inspection.views:
        print()
        _print_content(facts, inspection.views)
        print()
        _print_signal(facts, inspection.views)


Cells = Mapping[tuple[str, str], Mapping[str, Mapping[str, Any]]]


def _cells(facts: Mapping[str, Any], views: Sequence[str]) -> Cells:
    """Rows by (task, language) and view, the last of them over all."""
    cells: dict[tuple[str, str], dict[str, Mapping[str, Any]]] = {}
    for row in facts["rows"]:
        cells.setdefault((row["task"], row["language"]), {})[row["view"]] = row
    cells[("all", "")] = {
        view: {
            **facts["views"][view],
            "demonstrations_dropped": sum(facts["views"][view].get("demonstrations_dropped", {}).values()),
        }
        for view in views
    }
    return cells


def _print_content(facts: Mapping[str, Any], views: Sequence[str]) -> None:
    """A line per task and language: what the store holds of it, and what it costs."""
    header = ["task", "language", "examples", "answer tokens", *(f"bytes/token {view}" for view in views)]
    rows = []
    for (task, language), by_view in _cells(facts, views).items():
        most = max(by_view.values(), key=lambda row: row["answer_tokens"])  # a half-built view has fewer
        costs = [f"{by_view[view]['bytes_per_token']:,.0f}" if view in by_view else "–" for view in views]
        rows.append([task, language, f"{most['examples']:,}", f"{most['answer_tokens']:,}", *costs])
    print_table(header, rows, left=2, totals=1)


def _print_signal(facts: Mapping[str, Any], views: Sequence[str]) -> None:
    """A line per task, language and view: what the teacher says, the views of a cell below each other."""
    measures = {
        "entropy": ("mean_entropy", "{:.3f}"),
        "teacher CE": ("teacher_ce", "{:.3f}"),
        "accuracy": ("teacher_accuracy", "{:.1%}"),
        f"top-{facts['top_k']} mass": ("top_k_mass_mean", "{:.4f}"),
        "5th percentile": ("top_k_mass_p05", "{:.4f}"),
        "dropped": ("demonstrations_dropped", "{:,}"),
    }
    rows = []
    for (task, language), by_view in _cells(facts, views).items():
        for view in views:
            if view in by_view:
                shown = [form.format(by_view[view][key]) for key, form in measures.values()]
                rows.append([f"{task}/{language}" if language else task, view, *shown])
    print_table(["cell", "view", *measures], rows, left=2, totals=len(views))
