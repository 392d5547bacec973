"""Averaging, merging and quantising, and the directory that comes of it."""

from __future__ import annotations

import dataclasses
import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from logitbank import __version__
from logitbank.command import make_directory
from logitbank.configs.schema import ModelConfig
from logitbank.errors import counted
from logitbank.experiment import TRAINING_RECORD
from logitbank.models.huggingface import DTYPES, load_tokenizer, stored_dtype
from logitbank.models.pair_head import HEAD_SETTINGS, HEAD_WEIGHTS
from logitbank.preference import PackedPair
from logitbank.storage import LabelStore
from logitbank.student_train.checkpoints import refusals, seal
from logitbank.student_train.export.adapters import merged_model
from logitbank.student_train.export.comparison import chosen_rows, compare
from logitbank.student_train.export.gptq import RefusedError, quantize_gptq, require_llm_compressor
from logitbank.student_train.export.quantization import Quantization, quantize_int8, require_int8
from logitbank.student_train.export.record import Export, is_finished, write_record
from logitbank.student_train.export.sources import Source, seen_by_all
from logitbank.student_train.export.tensors import restore_dtypes, write_mean, write_mean_head

logger = logging.getLogger(__name__)


def run_export(export: Export) -> None:
    """Write the export's directory, which exists under its name only when it is whole; a finished one is left.

    Raises:
        ConfigError: an output with another content, or a model that cannot be merged or quantised.
        OutputError: a disk that is full or refuses.
    """
    if is_finished(export):
        logger.info("%s is finished already", export.output)
        return
    if export.quantization is not None:
        _require_programs(export.quantization)
    make_directory("--output", export.output.parent)
    partial, merged = (export.output.parent / f".{export.output.name}.{stage}" for stage in ("partial", "merged"))
    for directory in (partial, merged):
        shutil.rmtree(directory, ignore_errors=True)
    try:
        with refusals(export.output, partial):
            partial.mkdir()
            result = _write(export, partial, merged)
            write_record(partial, export, {"result": result, "logitbank": __version__})
            seal(partial)
            if export.output.exists():
                shutil.rmtree(export.output)
            partial.rename(export.output)
    finally:
        for directory in (partial, merged):
            shutil.rmtree(directory, ignore_errors=True)
    logger.info("%s: %s", export.output, _summary(export, result))


def _require_programs(quantization: Quantization) -> None:
    """Check that what quantises is installed, before anything is merged."""
    if quantization.method == "int8" or quantization.fallback == "int8":
        require_int8()
    if quantization.method == "gptq" and quantization.fallback is None:
        require_llm_compressor()


def _write(export: Export, partial: Path, merged: Path) -> dict[str, Any]:
    """Write everything but the record; what to say of it."""
    first = export.sources[0]
    if export.quantization is None:
        _write_whole(export, partial)
        result: dict[str, Any] = {}
        if len(export.sources) == 1 and first.training is not None:  # the same student, still
            shutil.copyfile(first.path / TRAINING_RECORD, partial / TRAINING_RECORD)
    else:
        whole = first.path
        if first.is_adapter or len(export.sources) > 1:
            merged.mkdir()
            _write_whole(export, merged)
            whole = merged
        result = _quantize(export, export.quantization, whole, partial)
    seen = seen_by_all(export.sources)
    if seen is not None:
        seen.write(partial)
    return {
        "averaged": _average_of(export.sources),
        "merged": first.is_adapter,
        "dtype": export.dtype,
        **result,
        "bytes": sum(path.stat().st_size for path in partial.glob("*.safetensors")),
    }


def _write_whole(export: Export, directory: Path) -> None:
    """Write a whole model with tokenizer and head, not quantised."""
    first, paths = export.sources[0], [source.path for source in export.sources]
    if first.is_adapter:
        model = merged_model(export.sources).to(DTYPES[export.dtype])
        model.save_pretrained(directory)
    else:
        as_stored = export.dtype == stored_dtype(first.base)
        write_mean(paths, directory, None if as_stored else export.dtype)
    _tokenizer(first).save_pretrained(directory)
    if first.has_own_head:
        write_mean_head(paths, directory)
    if first.head is not None:
        shutil.copyfile(first.path / HEAD_SETTINGS, directory / HEAD_SETTINGS)


def _quantize(export: Export, quantization: Quantization, whole: Path, directory: Path) -> dict[str, Any]:
    """Write a quantised model with tokenizer and head; what to say of it."""
    calibrating, compared = _rows(export, quantization, whole)
    source = ModelConfig(name=str(whole), trust_remote_code=export.sources[0].base.trust_remote_code)
    told, method = {}, quantization.method
    if method == "gptq":
        try:
            require_llm_compressor()
            logger.info("gptq: %s calibrate", counted(len(calibrating), "row"))
            told = quantize_gptq(source, quantization, calibrating, directory)
        except RefusedError as error:
            if quantization.fallback is None:
                raise
            reason = str(error).removeprefix("--quantize gptq: ").partition("; ")[0]
            logger.warning("warning: %s; %s is used instead", reason, quantization.fallback)
            told, method = {"instead_of": "gptq", "because": reason}, quantization.fallback
    if method == "int8":
        quantize_int8(source, directory)
    # compressed-tensors computes in the format of its scales, so they have to be stored in that of the embeddings
    restore_dtypes(directory, whole, DTYPES[stored_dtype(source)] if method == "gptq" else None)
    load_tokenizer(source).save_pretrained(directory)
    for name in (HEAD_SETTINGS, HEAD_WEIGHTS):
        if (whole / name).is_file():
            shutil.copyfile(whole / name, directory / name)
    settings = {"method": method, **told}
    if method == "gptq":
        settings |= {"bits": quantization.bits, "group_size": quantization.group_size, "rows": len(calibrating)}
    comparison = dataclasses.asdict(compare(whole, directory, compared)) if compared else None
    bytes_before = sum(path.stat().st_size for path in whole.glob("*.safetensors"))
    return {"quantization": settings, "compared": comparison, "bytes_before": bytes_before}


def _rows(export: Export, quantization: Quantization, whole: Path) -> tuple[list[PackedPair], list[PackedPair]]:
    head = export.sources[0].head
    if quantization.store is None or head is None:
        return [], []
    return chosen_rows(
        LabelStore.open(quantization.store),
        head,
        whole,
        quantization.samples,
        seen_by_all(export.sources),
    )


def _tokenizer(source: Source) -> Any:
    own = (source.path / "tokenizer_config.json").is_file()
    return load_tokenizer(ModelConfig(name=str(source.path)) if own else source.base)


def _average_of(sources: Any) -> str | None:
    if len(sources) == 1:
        return None
    return "mean of ΔW, and of heads" if sources[0].is_adapter else "mean of weights, and of heads"


def _summary(export: Export, result: Mapping[str, Any]) -> str:
    number, kind = len(export.sources), "adapter" if export.sources[0].is_adapter else "model"
    parts = [f"the mean of {counted(number, kind)}"] if number > 1 else []
    parts += [f"merged into {export.sources[0].base.name}"] if result["merged"] else []
    if quantization := result.get("quantization"):
        bits = f" {quantization['bits']} bits" if "bits" in quantization else ""
        parts.append(f"quantised ({quantization['method']}{bits}), {_megabytes(result['bytes_before'])} before")
    parts.append(f"{_megabytes(result['bytes'])}")
    if compared := result.get("compared"):
        parts.append(
            f"KL {compared['kl']:.2g} nats and {compared['same_first_choice']:.1%} equal first choices on "
            f"{counted(compared['rows'], 'row')}"
        )
    return ", ".join(parts)


def _megabytes(number: int) -> str:
    return f"{number / 1e6:,.1f} MB"
