"""build-teacher-cache: run a teacher once over the training examples and keep its top-K logits."""

from __future__ import annotations

import argparse
import os
import sys
from collections import Counter
from collections.abc import Sequence

import torch
from rich.console import Console
from rich.table import Table

from logitbank.command import CommandParser, run_command
from logitbank.configs import Config, ConfigError
from logitbank.configs.arguments import add_config_arguments, load
from logitbank.configs.schema import ModelConfig
from logitbank.models.huggingface import default_device, lm_head_rows, load_tokenizer
from logitbank.models.vllm import require_vllm
from logitbank.models.workers import find_worker, local_device
from logitbank.storage import TeacherStore
from logitbank.storage.objects.store import ObjectStore
from logitbank.tasks.prompts import PromptEncoder
from logitbank.teacher_cache.build import Tally, build, stored_ranks
from logitbank.teacher_cache.engines.carriers import CARRIERS
from logitbank.teacher_cache.engines.huggingface import HFTeacher
from logitbank.teacher_cache.engines.vllm import VllmTeacher
from logitbank.teacher_cache.plan import DEFAULT_VIEWS, VIEWS, TeacherPlan, make_plan

# Bytes per answer token and view, and per rank of it: fitted to what a small Qwen3 over six tasks took at K = 16 to
# 256, everything counted (docs/benchmarks.md).
BYTES_PER_TOKEN = {"compact": (17.0, 1.0), "float16": (10.0, 2.57), "exact": (12.0, 4.3)}
BYTES_PER_DRAW = 0.45  # likewise; more where draws are few


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of the command."""
    parser = CommandParser(prog="build-teacher-cache", description=__doc__)
    add_config_arguments(parser)
    parser.add_argument("--store", required=True, metavar="URL", help="directory or fsspec URL of the store")
    parser.add_argument(
        "--view",
        action="append",
        metavar="VIEW",
        help=f"one of {', '.join(VIEWS)}; may be repeated (default: {' and '.join(DEFAULT_VIEWS)})",
    )
    parser.add_argument(
        "--worker",
        metavar="I/N",
        help="this process is worker I (from 0) of N that fill one store (default: as torchrun or Slurm says)",
    )
    parser.add_argument("--dry-run", action="store_true", help="print what would be done, load no model")
    arguments = parser.parse_intermixed_args(argv)
    run_command(lambda: _run(arguments))


def _run(arguments: argparse.Namespace) -> None:
    config = load(arguments)
    worker = find_worker(arguments.worker, os.environ)
    if config.teacher.engine == "vllm" and not arguments.dry_run:
        _check_vllm()
    views = tuple(dict.fromkeys(arguments.view or DEFAULT_VIEWS))
    objects = ObjectStore(arguments.store)
    if not arguments.dry_run:
        objects.require_writable()  # before prompts are encoded and a large model is loaded for nothing
    teacher = _teacher_model(config)
    encoder = PromptEncoder(load_tokenizer(config.model))
    _check_teacher(config, teacher, encoder)
    plan = make_plan(config, encoder, views)
    if arguments.dry_run:
        _print_plan(config, plan)
        return
    engine = _open_engine(config, teacher, encoder, plan)
    if worker is not None:
        print(f"{worker}; --worker 0/1 would do all shards", flush=True)
    tally = build(
        arguments.store,
        config,
        plan,
        encoder,
        engine,
        vocab_size=engine.vocab_size,
        worker=worker.index if worker else None,
        workers=worker.count if worker else None,
    )
    _print_done(arguments.store, tally)


def _open_engine(
    config: Config, teacher: ModelConfig, encoder: PromptEncoder, plan: TeacherPlan
) -> HFTeacher | VllmTeacher:
    """The engine that `teacher.engine` names."""
    if config.teacher.engine == "vllm":
        return VllmTeacher(
            teacher,
            config.vllm,
            dtype=config.teacher.dtype,
            tokenizer_size=len(encoder.tokenizer),
            top_k=config.teacher.top_k,
            batch_tokens=config.teacher.batch_tokens,
            max_tokens=plan.longest,
            prefix_reuse=config.teacher.prefix_reuse,
        )
    return HFTeacher(
        teacher,
        dtype=config.teacher.dtype,
        tokenizer_size=len(encoder.tokenizer),
        device=_device(config),
        prefix_reuse=config.teacher.prefix_reuse,
        device_map=config.teacher.device_map,
        load_in_8bit=config.teacher.load_in_8bit,
        load_in_4bit=config.teacher.load_in_4bit,
    )


def _print_done(url: str, tally: Tally) -> None:
    store = TeacherStore.open(url)
    missing = {view: len(store.missing_shards(view)) for view in store.views}
    state = ", ".join(f"{view} {'complete' if not n else f'lacks {n} shards'}" for view, n in missing.items())
    print(
        f"{url}: {len(store.examples):,} examples, {store.info.answer_tokens:,} answer tokens; {state}\n"
        f"teacher: {_describe(tally)}\n"
        f"fingerprint {store.info.fingerprint[:16]}; look inside: inspect-cache --store {url}"
    )


def _describe(tally: Tally) -> str:
    if not tally.tokens:
        return "nothing was left to do"
    parts = [f"{tally.tokens:,} tokens, {tally.tokens / tally.seconds:,.0f} tokens/s"]
    if tally.reused_tokens:
        parts.append(f"{tally.reused_tokens / tally.tokens:.0%} of them from shared prefixes")
    parts.append(f"padding {tally.padding_waste:.1%}")
    if tally.fallen_shards:
        parts.append(f"{tally.fallen_shards} shards in smaller batches for want of memory")
    return ", ".join(parts)


def _teacher_model(config: Config) -> ModelConfig:
    name = config.teacher.model or config.model.name
    revision = config.teacher.revision if config.teacher.model else config.model.revision
    return ModelConfig(
        name=name,
        revision=revision,
        dtype=config.model.dtype,
        attn_implementation=config.model.attn_implementation,
        trust_remote_code=config.model.trust_remote_code,
    )


def _check_teacher(config: Config, teacher: ModelConfig, encoder: PromptEncoder) -> None:
    if teacher.name != config.model.name:
        try:
            other = PromptEncoder(load_tokenizer(teacher))
        except ConfigError as error:
            raise ConfigError(str(error).replace("model.name", "teacher.model", 1)) from None
        if other.tokenizer_hash != encoder.tokenizer_hash:
            raise ConfigError(
                f"teacher.model: expected the tokenizer of {config.model.name}, but {teacher.name} has another; "
                "logits can only be shared between models with the same token ids"
            )
    rows = min(lm_head_rows(teacher), len(encoder.tokenizer))
    taken = CARRIERS if config.teacher.engine == "vllm" else 0
    if config.teacher.top_k > rows - taken:
        less = f" less the {taken} that vllm needs" if taken else ""
        raise ConfigError(
            f"teacher.top_k: expected at most {rows - taken}, the size of the vocabulary{less}, "
            f"got {config.teacher.top_k}"
        )


def _check_vllm() -> None:
    require_vllm("teacher.engine")
    if int(os.environ.get("LOCAL_WORLD_SIZE", 1)) > 1 and default_device().type != "cpu":
        raise ConfigError(
            "teacher.engine: vllm takes all devices it sees, but several processes were launched on this machine; "
            "start each with its own CUDA_VISIBLE_DEVICES and --worker I/N, or launch one with vllm.tensor_parallel"
        )


def _device(config: Config) -> torch.device:
    if int(os.environ.get("LOCAL_WORLD_SIZE", 1)) > 1 and config.teacher.device_map is not None:
        raise ConfigError(
            f"teacher.device_map: {config.teacher.device_map} spreads one teacher over all devices, but several "
            "processes were launched on this machine; launch one, or set it to null"
        )
    return local_device(os.environ)


def _print_plan(config: Config, plan: TeacherPlan) -> None:
    table = Table(title="What the teacher would do")
    for name in ("task", "language", "examples", "answer tokens"):
        table.add_column(name, justify="left" if name in ("task", "language") else "right")
    for view in plan.views:
        table.add_column(f"{view} tokens", justify="right")
        if view != "zeroshot":
            table.add_column(f"{view} demonstrations dropped", justify="right")
    table.add_column("too long", justify="right")
    cells = [(record.task, record.language) for record in plan.examples]
    examples = Counter(cells)
    answers: Counter[tuple[str, str]] = Counter()
    tokens = {view: Counter[tuple[str, str]]() for view in plan.views}
    for position, (cell, record) in enumerate(zip(cells, plan.examples, strict=True)):
        answers[cell] += len(record.answer_ids)
        for view, view_plan in plan.views.items():
            tokens[view][cell] += len(view_plan.prompts[position]) + len(record.answer_ids) - 1
    for cell in sorted(examples | plan.too_long):
        row = [*cell, f"{examples[cell]:,}", f"{answers[cell]:,}"]
        for view, view_plan in plan.views.items():
            row.append(f"{tokens[view][cell]:,}")
            if view != "zeroshot":
                row.append(f"{view_plan.dropped[cell]:,}")
        table.add_row(*row, f"{plan.too_long[cell]:,}")
    Console(file=sys.stdout, width=None if sys.stdout.isatty() else 160).print(table)
    ranks, draws = stored_ranks(config), 0 if config.teacher.signal == "topk" else config.teacher.draws
    size = plan.answer_tokens * len(plan.views) * bytes_per_token(config.store.encoding, ranks, draws)
    total = sum(sum(counter.values()) for counter in tokens.values())
    kept = f"K={ranks} and {draws} draws" if draws else f"K={ranks}"
    print(
        f"{len(plan.examples):,} examples, {plan.answer_tokens:,} answer tokens, {len(plan.views)} views: "
        f"{total:,} teacher tokens, about {size / 1e6:,.1f} MB at {kept} ({config.store.encoding})"
    )


def bytes_per_token(encoding: str, top_k: int, draws: int = 0) -> float:
    """Expected bytes of one answer token under one view."""
    fixed, per_rank = BYTES_PER_TOKEN[encoding]
    return fixed + per_rank * top_k + BYTES_PER_DRAW * draws


if __name__ == "__main__":
    main()
