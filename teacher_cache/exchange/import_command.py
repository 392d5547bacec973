"""logitbank import: take over teacher log-probabilities that another toolkit wrote, as a view of a store.

    logitbank import 'kd/*.parquet' --store runs/store --view theirs --model Qwen/Qwen3-1.7B --teacher Qwen/Qwen3-8B

The layout is told from the columns. Every row is checked before anything is written. Run an interrupted import again to
resume it.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from logitbank.command import CommandParser, positive, run_command
from logitbank.errors import counted
from logitbank.registry import ENCODINGS, IMPORT_LAYOUTS


def make_parser() -> CommandParser:
    """The command's arguments."""
    parser = CommandParser(
        prog="logitbank import", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "files", nargs="+", metavar="FILE", help="Parquet or JSON lines: paths, globs, URLs, or a hub id (org/name)"
    )
    parser.add_argument("--store", required=True, metavar="URL", help="directory or fsspec URL of the store")
    parser.add_argument("--view", required=True, metavar="NAME", help="name of the view that gets the rows")
    parser.add_argument(
        "--model", required=True, metavar="MODEL", help="the students' base model, whose tokenizer made the ids"
    )
    parser.add_argument(
        "--teacher", required=True, metavar="MODEL", help="the model that computed these log-probabilities"
    )
    parser.add_argument("--teacher-revision", metavar="REVISION", help="revision of the teacher")
    parser.add_argument(
        "--format", choices=IMPORT_LAYOUTS, help="layout of the rows (default: detected from the columns)"
    )
    parser.add_argument(
        "--top-k", type=positive(int), metavar="K", help="ranks to keep (default: as many as every answer token has)"
    )
    parser.add_argument(
        "--vocab-size",
        type=positive(int),
        metavar="V",
        help="number of rows of the teacher's lm_head (default: that of --model)",
    )
    parser.add_argument("--encoding", choices=ENCODINGS, help="how rows are stored (default: compact)")
    parser.add_argument(
        "--shard-tokens", type=positive(int), metavar="N", help="answer tokens per shard (default: 4,096)"
    )
    parser.add_argument("--task", default="chat", help="task of rows without one (default: chat)")
    parser.add_argument("--language", default="und", help="language of rows without one (default: und)")
    parser.add_argument(
        "--normalized",
        choices=("vocabulary", "top-k"),
        help="what the probabilities of a row sum to 1 over (default: detected from their sums)",
    )
    parser.add_argument(
        "--row-predicts",
        choices=("own", "next"),
        help="axolotl: whether a row predicts the token at its position or the next (default: detected from the rows)",
    )
    parser.add_argument("--logprobs-field", metavar="COLUMN", help="axolotl: column of the log-probabilities")
    parser.add_argument(
        "--compression-config", metavar="FILE", help="distillkit: its compression_config.yaml (default: next to FILE)"
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="check the rows and print what they contain, without writing a store"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of the command."""
    arguments = make_parser().read(argv)
    run_command(lambda: perform(arguments), resumes=True)


def perform(arguments: argparse.Namespace) -> None:
    """What the command does."""
    from logitbank.configs.schema import ModelConfig, StoreConfig
    from logitbank.models.huggingface import lm_head_rows, load_tokenizer  # torch and the rest: not for --help
    from logitbank.teacher_cache.exchange.importing import Target, describe, import_rows
    from logitbank.teacher_cache.exchange.layouts import LayoutOptions
    from logitbank.teacher_cache.exchange.reading import ForeignRows

    model = ModelConfig(name=arguments.model)
    teacher = {"model": arguments.teacher, "revision": arguments.teacher_revision, "engine": "imported"}
    options = LayoutOptions(
        files=arguments.files,
        logprobs_field=arguments.logprobs_field,
        row_predicts=arguments.row_predicts,
        compression=arguments.compression_config,
    )
    target = Target(
        url=arguments.store,
        view=arguments.view,
        model=arguments.model,
        teacher={key: value for key, value in teacher.items() if value is not None},
        tokenizer=load_tokenizer(model),
        vocab_size=int(arguments.vocab_size or lm_head_rows(model)),
        top_k=arguments.top_k,
        encoding=arguments.encoding or StoreConfig().encoding,
        shard_tokens=arguments.shard_tokens or StoreConfig().shard_tokens,
        task=arguments.task,
        language=arguments.language,
        normalized=arguments.normalized,
    )
    rows = ForeignRows(arguments.format, options)
    imported = import_rows(rows, target, dry_run=arguments.dry_run)
    print(describe(imported, rows))
    if not arguments.dry_run:
        kept = imported.survey.examples - imported.written
        before = f" ({kept:,} were there already)" if kept else ""
        print(f"{arguments.store}: view {arguments.view}: {counted(imported.written, 'example')} written{before}")


if __name__ == "__main__":
    main()
