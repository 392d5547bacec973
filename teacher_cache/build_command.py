"""build-teacher-cache: run a teacher once over the training examples and keep its logits."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from logitbank.cluster import RayOptions, add_ray, ray_options
from logitbank.command import CommandParser, run_command
from logitbank.configs.arguments import add_config_arguments, load, overrides_of
from logitbank.errors import ConfigError, counted
from logitbank.experiment import DEFAULT_VIEWS, NO_VIEW, VIEWS
from logitbank.processes import run_process

if TYPE_CHECKING:
    from logitbank.configs import Config
    from logitbank.models.workers import Worker
    from logitbank.teacher_cache.estimate import Estimate
    from logitbank.teacher_cache.scoring import Tally

GENERATE = "generate"  # of --answers
SAMPLE_FIRST = "run logitbank sample-answers first, and give --answers its file"


def make_parser() -> CommandParser:
    """The command's arguments; imports nothing that takes time."""
    parser = CommandParser(prog="build-teacher-cache", description=__doc__)
    add_config_arguments(parser)
    parser.add_argument("--store", required=True, metavar="URL", help="directory or fsspec URL of the store")
    parser.add_argument(
        "--view",
        action="append",
        metavar="VIEW",
        help=f"one of {', '.join(VIEWS)}; can be repeated (default: {' and '.join(DEFAULT_VIEWS)}). For preference: "
        f"the teacher's name, or {NO_VIEW} for rows and folds only",
    )
    parser.add_argument(
        "--fold",
        action="append",
        type=int,
        metavar="K",
        help="preference: score this fold; can be repeated (default: the fold that the teacher's training left out, "
        "or all)",
    )
    parser.add_argument(
        "--checkpoint",
        type=Path,
        metavar="DIR",
        help="preference: the trained teacher (default: teacher.model or model.name, answering with the letters A, B, "
        "C)",
    )
    parser.add_argument(
        "--logits",
        metavar="GLOB",
        help="preference: import raw logits from .npy files, one row for each row of preference.train with text",
    )
    parser.add_argument(
        "--split",
        choices=("train", "validation", "test"),
        default="train",
        help="split of the examples: train, or another one for evaluate-model --store (default: train)",
    )
    parser.add_argument(
        "--answers",
        metavar="FILE|generate",
        help="train on these answers of a model to the training examples (from sample-answers), or generate them "
        "first with sampling.model",
    )
    parser.add_argument(
        "--worker",
        metavar="I/N",
        help="this process is worker I (from 0) of N that fill one store (default: from torchrun or Slurm)",
    )
    add_ray(parser, what="shards")
    parser.add_argument("--dry-run", action="store_true", help="print what would be done without loading a model")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of the command."""
    arguments = make_parser().read(argv)
    run_command(lambda: perform(arguments), resumes=not arguments.dry_run)


def perform(arguments: argparse.Namespace) -> None:
    """What the command does."""
    config, ray = load(arguments), ray_options(arguments)
    if config.is_preference and ray is not None:
        raise ConfigError("--ray: works with teacher stores only; leave it out for tasks=[preference]")
    from logitbank.models.workers import find_worker
    from logitbank.teacher_cache.stage import build, refuse_options_of_comparisons  # imports torch and transformers

    worker = find_worker(arguments.worker, os.environ)
    comparisons = {"folds": arguments.fold, "checkpoint": arguments.checkpoint, "logits": arguments.logits}
    if not config.is_preference:
        refuse_options_of_comparisons(config, **comparisons)
        if arguments.dry_run:
            _print_expected(config, arguments)
            return
        if ray is not None:
            if arguments.answers == GENERATE:
                raise ConfigError(f"--answers: {GENERATE} is of one process; {SAMPLE_FIRST}")
            if worker is not None:
                raise ConfigError(f"--ray: expected one process, got {worker}; start the command without a launcher")
            _print_done(arguments.store, _build_on_ray(arguments, arguments.view or DEFAULT_VIEWS, ray))
            return
        if worker is not None:
            print(f"{worker}; --worker 0/1 builds all shards", flush=True)
    if arguments.answers == GENERATE:
        arguments.answers = _generated(arguments, worker)
    tally = build(
        config,
        store=arguments.store,
        views=arguments.view,
        split=arguments.split,
        answers=arguments.answers,
        worker=worker,
        dry_run=arguments.dry_run,
        **comparisons,
    )
    if tally is not None:
        _print_done(arguments.store, tally)


def _generated(arguments: argparse.Namespace, worker: Worker | None) -> str:
    """Have `sample-answers` write the answers, in a process of its own: the model's memory is free when it ends."""
    if worker is not None:
        raise ConfigError(f"--answers: {GENERATE} is of one process; {SAMPLE_FIRST}")
    if "://" in arguments.store:
        raise ConfigError(
            f"--answers: {GENERATE} writes beside a directory, got --store {arguments.store}; {SAMPLE_FIRST}"
        )
    path = f"{arguments.store.rstrip('/')}.answers.jsonl"
    files = ["--config", *arguments.config] if arguments.config else []
    run_process(
        [sys.executable, "-m", "logitbank", "sample-answers", "--output", path, *files, *overrides_of(arguments)]
    )
    return path


def _build_on_ray(arguments: argparse.Namespace, views: Sequence[str], options: RayOptions) -> Tally:
    from logitbank.teacher_cache.on_ray import Recipe, build_on_ray

    return build_on_ray(
        Recipe(arguments.config, overrides_of(arguments), arguments.store, views, arguments.split, arguments.answers),
        options,
    )


def _print_expected(config: Config, arguments: argparse.Namespace) -> None:
    from logitbank.storage.objects import open_objects
    from logitbank.teacher_cache.build import estimate_store

    open_objects(arguments.store)  # an URL that no file system knows is an error here too
    if arguments.answers == GENERATE:
        raise ConfigError(f"--dry-run: {GENERATE}d answers are not known yet; {SAMPLE_FIRST}")
    views = arguments.view or DEFAULT_VIEWS
    _print_estimate(estimate_store(config, views, split=arguments.split, answers=arguments.answers))


def _print_done(url: str, tally: Tally) -> None:
    from logitbank.storage import TeacherStore

    store = TeacherStore.open(url)
    missing = {view: len(store.missing_shards(view)) for view in store.views}
    state = ", ".join(f"{view} {f'lacks {_shards(n)}' if n else 'complete'}" for view, n in missing.items())
    print(
        f"{shlex.quote(url)}: {len(store.examples):,} examples, {store.info.answer_tokens:,} answer tokens; {state}\n"
        f"teacher: {_describe(tally)}\n"
        f"fingerprint {store.info.fingerprint[:16]}; look inside: inspect-cache --store {shlex.quote(url)}"
    )


def _shards(number: int) -> str:
    return f"{number:,} shard{'' if number == 1 else 's'}"


def _describe(tally: Tally) -> str:
    if not tally.tokens:
        return "nothing left to do"
    parts = [f"{tally.tokens:,} tokens, {tally.tokens / tally.seconds:,.0f} tokens/s"]
    if tally.reused_tokens:
        parts.append(f"{tally.reused_tokens / tally.tokens:.0%} of them from shared prefixes")
    parts.append(f"padding {tally.padding_waste:.1%}")
    if tally.fallen_shards:
        parts.append(f"{_shards(tally.fallen_shards)} in smaller batches because memory ran out")
    return ", ".join(parts)


def _print_estimate(expected: Estimate) -> None:
    from logitbank.teacher_cache.tables import print_table

    fewshot = [view for view in expected.views if view != "zeroshot"]
    header = ["task", "language", "examples", "answer tokens", "left out"]
    print_table(
        [*header, *(f"tokens {view}" for view in expected.views), *(f"dropped {view}" for view in fewshot)],
        [
            [
                *(cell.task, cell.language, f"{cell.examples:,}", f"{cell.answer_tokens:,}", f"{cell.left_out:,}"),
                *(f"{cell.tokens[view]:,}" for view in expected.views),
                *(f"{cell.demonstrations_dropped[view]:,}" for view in fewshot),
            ]
            for cell in expected.cells
        ],
        left=2,
    )
    kept = f"K={expected.top_k}" + (f" and {expected.draws} draws" if expected.draws else "")
    print(
        f"{counted(expected.examples, 'example')}, {counted(expected.answer_tokens, 'answer token')}, "
        f"{counted(len(expected.views), 'view')}: "
        f"{expected.tokens:,} teacher tokens, about {expected.bytes / 1e6:,.1f} MB at {kept} ({expected.encoding})"
    )


if __name__ == "__main__":
    main()
