"""`export-model`: average students, merge adapters into their base, quantise what comes of it."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from logitbank.command import CommandParser, positive, run_command
from logitbank.errors import ConfigError


def make_parser() -> CommandParser:
    """The command's arguments."""
    parser = CommandParser(
        prog="export-model",
        description="Write a complete model from what training wrote: average adapters, merge them into their base "
        "and quantise the result, with head, tokenizer and a record of how it was made. A finished export is not "
        "written again.",
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--checkpoint", type=Path, metavar="DIR", help="adapter or model to export")
    what.add_argument(
        "--average", type=Path, nargs="+", metavar="DIR", help="adapters or models of one base to average and export"
    )
    parser.add_argument("--output", required=True, type=Path, metavar="DIR", help="directory for the model")
    parser.add_argument(
        "--base", metavar="MODEL", help="where the adapters' base model is now (default: where it was in training)"
    )
    parser.add_argument(
        "--dtype",
        default="auto",
        choices=("auto", "float32", "bfloat16", "float16"),
        help="number format of the weights (default auto: that of the base)",
    )
    parser.add_argument("--quantize", choices=("gptq", "int8"), help="quantise the linear layers")
    parser.add_argument("--bits", type=int, choices=(4, 8), help="bits per weight, for gptq (default 4)")
    parser.add_argument(
        "--group-size",
        type=positive(int),
        metavar="N",
        help="number of weights that share a scale, for gptq (default: the first of 128, 64, 32, 16 that divides "
        "every layer)",
    )
    parser.add_argument(
        "--samples", type=positive(int), metavar="N", help="number of rows of --store that calibrate gptq (default 256)"
    )
    parser.add_argument(
        "--store",
        metavar="URL",
        help="label store whose rows calibrate gptq and compare the model before and after quantisation",
    )
    parser.add_argument(
        "--fallback", choices=("int8",), help="use this if llm-compressor is missing or does not support the model"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of the console script."""
    arguments = make_parser().read(argv)
    run_command(lambda: perform(arguments), resumes=True)


def perform(arguments: argparse.Namespace) -> None:
    """What the command does."""
    _check_options(arguments)
    from logitbank.models.huggingface import stored_dtype  # torch and transformers: not for --help
    from logitbank.storage import LabelStore
    from logitbank.student_train.export.export import run_export
    from logitbank.student_train.export.quantization import Quantization, check_unquantised, find_group_size
    from logitbank.student_train.export.record import Export
    from logitbank.student_train.export.sources import check_together, open_source

    option, paths = ("--average", arguments.average) if arguments.average else ("--checkpoint", [arguments.checkpoint])
    sources = [open_source(path, option, arguments.base) for path in paths]
    check_together(sources)
    base = sources[0].base
    for source in sources:
        check_unquantised(source.base, "--base" if source.is_adapter else option)
    if arguments.quantize == "gptq" and sources[0].head is None:
        raise ConfigError(
            f"--quantize gptq: calibrates on preferences, but {paths[0]} was not trained on them; use --quantize int8"
        )
    quantization = None
    if arguments.quantize is not None:
        quantization = Quantization(
            method=arguments.quantize,
            bits=arguments.bits or 4,
            group_size=find_group_size(base, arguments.group_size) if arguments.quantize == "gptq" else None,
            samples=arguments.samples or 256 if arguments.quantize == "gptq" else None,
            store=arguments.store,
            fallback=arguments.fallback,
        )
    store = None if arguments.store is None else LabelStore.open(arguments.store).info.fingerprint
    dtype = stored_dtype(base) if arguments.dtype == "auto" else arguments.dtype
    run_export(Export(sources, arguments.output, dtype, quantization, store))


def _check_options(arguments: argparse.Namespace) -> None:
    """Refuse options that would say nothing.

    Raises:
        ConfigError: names the option and what it needs.
    """
    for name in ("bits", "group_size", "samples", "fallback"):
        if getattr(arguments, name) is not None and arguments.quantize != "gptq":
            raise ConfigError(f"--{name.replace('_', '-')}: needs --quantize gptq")
    if arguments.store is not None and arguments.quantize is None:
        raise ConfigError("--store: is only used with --quantize; add --quantize, or leave it out")
    if arguments.quantize == "gptq" and arguments.store is None:
        raise ConfigError("--quantize gptq: needs --store URL, the label store whose rows calibrate it")
    if arguments.average is not None and len(arguments.average) < 2:
        raise ConfigError("--average: expected at least two checkpoints, got one; use --checkpoint")


if __name__ == "__main__":
    main()
