"""Write `version-X.tar.xz` and `version-X.json` with the code of an earlier version.

    python tests/legacy/make.py X CHECKOUT

CHECKOUT is a clone of that version's commit, see `COMMITS`. The archive holds a model, a mirror of two datasets,
teacher stores, a student and result rows; the JSON holds what the old code read from them. Tests read both with the
code of today.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
COMMITS = {"0.1.0": "095309e", "0.2.0": "dfdf6eb"}  # stores of format 3, both
PACKAGE = {"0.1.0": "", "0.2.0": "logitbank."}  # before the modules' names
TEMPLATE = (
    "{% for m in messages %}<start>{{ m.role }}\n{{ m.content }}<end>{% endfor %}"
    "{% if add_generation_prompt %}<start>assistant\n{% endif %}"
)
DATA = [
    *("model.name=./model", "model.dtype=float32", "data.mirror=./hub", "data.sources={nli: xnli}", "tasks=[nli,pa]"),
    *("languages=[en,hi]", "fewshot.num_demonstrations={nli: 2, pa: 2}"),
]
TEACHER = [
    *(*DATA, "data.max_train_per_task=6", "data.max_validation_per_task=2", "teacher.top_k=24"),
    *("store.shard_tokens=32", "store.chunk_tokens=16"),
]
STORES = {
    "compact": ["store.encoding=compact"],
    "float16": ["store.encoding=float16"],
    "exact": ["store.encoding=exact"],
    "hybrid": ["store.encoding=compact", "teacher.signal=hybrid", "teacher.draws=8"],
    "sampled": ["store.encoding=compact", "teacher.signal=sampled", "teacher.draws=8"],
}
TRAIN = [
    *(*TEACHER, "training.max_steps=6", "training.save_steps=2", "training.logging_steps=1"),
    *("training.global_batch_size=4", "training.micro_batch_size=2", "training.num_workers=0"),
    *("training.warmup_steps=1", "training.precision=fp32", "distillation.lambda_distill=0.5"),
    *("lora.r=2", "lora.alpha=4", "lora.target_modules=[q_proj,v_proj]"),
]
EVALUATE = [*DATA, "evaluation.max_samples=6"]
QUERIES = {
    "metrics": "SELECT model, condition, seed, step, task, language, method, metric, is_primary, examples, value "
    "FROM metrics ORDER BY ALL",
    "predictions": "SELECT condition, step, example_id, parsed, gold, score FROM predictions "
    "WHERE language = 'hi' ORDER BY ALL",
    "runs": "SELECT kind, model, condition, step, seed, view, lambda_distill, strategy, store_fingerprint FROM runs "
    "ORDER BY ALL",
    "training_log": "SELECT condition, seed, step, task, metric, value FROM training_log "
    "WHERE metric IN ('loss', 'student_ce', 'kd', 'lambda', 'learning_rate') ORDER BY ALL",
    "cells": "SELECT model, condition, task, language, metric, examples, value FROM cells WHERE is_primary "
    "ORDER BY ALL",
    "task_averages": "SELECT model, condition, task, languages, language_mean FROM task_averages WHERE is_primary "
    "ORDER BY ALL",
    "averages": "SELECT model, condition, cells, task_mean, task_language_mean FROM averages ORDER BY ALL",
    "lambda_sweep": "SELECT model, condition, lambda_distill, task, language_mean FROM lambda_sweep ORDER BY ALL",
    "gaps": "SELECT model, gap, task, language, difference FROM gaps WHERE is_primary ORDER BY ALL",
}
PUBLISHED = "model,condition,task,lang,value\n" + "".join(
    f"Published-1B,{condition},{task},{language},{value}\n"
    for condition, task, language, value in (
        ("Fine-tuned", "nli", "en", 61.5),
        ("Fine-tuned", "nli", "hi", 44.25),
        ("Distilled", "nli", "en", 63.0),
        ("Distilled", "nli", "hi", 47.75),
        ("Base", "nli", "en", 35.5),
    )
)
DECODE = """
import hashlib, json, sys
from PACKAGEstorage import TeacherStore

read = {}
for url in sys.argv[1:]:
    store = TeacherStore.open(url)
    digest = hashlib.sha256()
    for table in (store.examples, store.validation):
        digest.update("\\n".join(table.example_id).encode())
        for i in range(len(table)):
            digest.update(table.prompt_ids(i).tobytes() + table.answer_ids(i).tobytes())
    views = {}
    for view in store.views:
        rows = store.read(range(len(store.examples)), view)
        names = sorted(vars(rows))
        views[view] = {
            "fingerprint": store.view_attributes(view)["fingerprint"],
            "sha256": {name: hashlib.sha256(getattr(rows, name).tobytes()).hexdigest() for name in names},
            "first_row": {name: getattr(rows, name)[0].tolist() for name in names},
        }
    info = store.info
    read[url] = {
        "fingerprint": info.fingerprint, "answer_tokens": info.answer_tokens, "shards": info.shards,
        "examples": digest.hexdigest(), "views": views,
    }
print(json.dumps(read))
"""
BUILD = """
import hashlib, json, sys
from pathlib import Path
from tests.storage import stores

built = {}
for name, changes in json.loads(sys.argv[2]).items():
    root = Path(sys.argv[1]) / name
    stores.build(str(root), stores.records(20), validation=stores.records(3, seed=1, prefix="held"), **changes)
    digest = hashlib.sha256()
    for path in sorted(path for path in (root / "teachers").rglob("c/**/*") if path.is_file()):
        digest.update(path.relative_to(root).as_posix().encode() + path.read_bytes())
    built[name] = digest.hexdigest()
print(json.dumps(built))
"""
EVALUATIONS = """
import datetime
from itertools import product
from pathlib import Path
from PACKAGEstorage.results import write_rows

# Scores that a random model does not reach: two students of two seeds and two λ, their base and control.
for condition, weight, seed in (
    *product(("finetuned",), (None,), (42, 43)),
    *product(("distilled", "control"), (0.05, 0.5), (42, 43)),
    ("base", None, None),
):
    run = f"{condition}-{weight}-{seed}"
    identity = {"run": run, "model": "Model-1B", "condition": condition, "seed": seed, "step": seed and 60}
    about = {"kind": "evaluation", "variant": weight and f"λ={weight}", "setup": "s", "lambda_distill": weight,
             "strategy": weight and "fixed", "created_at": datetime.datetime(2026, 1, 2, tzinfo=datetime.UTC)}
    write_rows(Path("results"), "runs", [{**identity, **about}], run)
    rows = [
        {**identity, "task": task, "language": language, "split": "test", "method": "generate", "metric": "accuracy",
         "value": (len(condition) * 7 + len(task) + len(language) * i + (seed or 0) % 5 * 3 + 10 * (weight or 0)) / 128,
         "is_primary": True, "examples": 500}
        for i, (task, language) in enumerate((("nli", "en"), ("nli", "hi"), ("pa", "en"), ("pos", "en"), ("pos", "hi")))
    ]
    write_rows(Path("results"), "metrics", rows, run)
"""
BUILDS: dict[str, dict[str, Any]] = {name: {"encoding": name} for name in ("compact", "float16", "exact")}


def archive_of(version: str) -> Path:
    """The files of a version."""
    return HERE / f"version-{version}.tar.xz"


def recorded_of(version: str) -> dict[str, Any]:
    """What a version read from its files."""
    recorded: dict[str, Any] = json.loads((HERE / f"version-{version}.json").read_text(encoding="utf-8"))
    return recorded


def main(version: str, checkout: Path) -> None:
    """Write both files of a version anew."""
    with tempfile.TemporaryDirectory() as scratch:
        files = Path(scratch) / "files"
        files.mkdir()
        recorded = write_files(files, version, checkout)
        with tarfile.open(archive_of(version), "w:xz") as archive:
            for path in sorted(files.iterdir()):
                archive.add(path, path.name)
    (HERE / f"version-{version}.json").write_text(json.dumps(recorded, ensure_ascii=False) + "\n")


def write_files(files: Path, version: str, checkout: Path) -> dict[str, Any]:
    """Fill an empty directory; returns what the old code reads from it."""
    write_model(files / "model")
    write_hub(files / "hub")
    (files / "published.csv").write_text(PUBLISHED)
    package = PACKAGE[version]

    def run(*command: str) -> str:
        environment = {**os.environ, "PYTHONPATH": str(checkout), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            [sys.executable, "-W", "ignore", *command], cwd=files, env=environment, capture_output=True, text=True
        )
        if done.returncode:
            sys.exit(f"{' '.join(command)}\n{done.stdout}{done.stderr}")
        return done.stdout

    def run_code(code: str, *arguments: str) -> str:
        return run("-c", code.replace("PACKAGE", package), *arguments)

    for name, settings in STORES.items():
        views = ("--view", "zeroshot") if name in ("float16", "exact") else ("--view", "fewshot", "--view", "zeroshot")
        run("-m", f"{package}teacher_cache.build_command", "--store", f"stores/{name}", *views, *TEACHER, *settings)
    train_student = ("-m", f"{package}student_train.train_command", "--store", "stores/compact", "--results", "results")
    run(*train_student, "--view", "fewshot", "--output", "distilled", *TRAIN)
    run(*train_student, "--view", "none", "--output", "finetuned", *TRAIN)
    evaluate_model = ("-m", f"{package}evaluation.evaluate_command", "--results", "results", *EVALUATE, "--condition")
    for condition in ("base", "fewshot"):
        run(*evaluate_model, condition)
    run(*evaluate_model, "finetuned", "--checkpoint", "finetuned/final")
    run(*evaluate_model, "distilled", "--checkpoint", "distilled", "--steps", "4")
    run(*evaluate_model, "distilled", "--checkpoint", "distilled/final")
    query_results = ("-m", f"{package}evaluation.query_command", "--results", "results")
    run(*query_results, "import", "published.csv")
    run_code(EVALUATIONS)
    queries = {name: json.loads(run(*query_results, "sql", q, "--format", "json")) for name, q in QUERIES.items()}
    recorded = {
        "versions": {name: importlib.metadata.version(name) for name in ("zarr", "numcodecs", "pcodec")},
        "stores": json.loads(run_code(DECODE, *(f"stores/{name}" for name in STORES))),
        "built": json.loads(run("-c", BUILD, str(files / "built"), json.dumps(BUILDS))),
        "queries": queries,
    }
    for folder in ("built", "results/.cache", "finetuned", "distilled/checkpoint-2"):
        shutil.rmtree(files / folder, ignore_errors=True)  # of a cache not every version writes one
    return recorded


def write_model(path: Path) -> None:
    """A random Qwen3 of two layers with a byte tokenizer."""
    import torch
    import transformers
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    symbols = sorted(pre_tokenizers.ByteLevel.alphabet())
    raw = Tokenizer(models.BPE({symbol: index for index, symbol in enumerate(symbols)}, []))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=raw, pad_token="<pad>", eos_token="<end>", additional_special_tokens=["<start>"]
    )
    tokenizer.chat_template = TEMPLATE
    torch.manual_seed(0)
    config = transformers.Qwen3Config(
        vocab_size=264,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        max_position_embeddings=1024,
        initializer_range=0.4,
    )
    transformers.Qwen3ForCausalLM(config).save_pretrained(path)
    tokenizer.save_pretrained(path)


def write_hub(path: Path) -> None:
    """XNLI in en and hi, PAWS-X in en: 8 rows in each split."""
    import datasets

    for repository, languages in (("facebook/xnli", ("en", "hi")), ("google-research-datasets/paws-x", ("en",))):
        folder, listed = path / repository, []
        for language in languages:
            (folder / language).mkdir(parents=True)
            for split in ("train", "validation", "test"):
                rows: list[dict[str, Any]] = (
                    [{"premise": f"p {i} {split}", "hypothesis": f"h {i}", "label": i % 3} for i in range(8)]
                    if repository.endswith("xnli")
                    else [{"id": i, "sentence1": f"a {i} {split}", "sentence2": f"b {i}", "label": i % 2}
                          for i in range(8)]
                )  # fmt: skip
                datasets.Dataset.from_list(rows).to_parquet(folder / language / f"{split}-0.parquet")
            files = [{"split": split, "path": f"{language}/{split}-*"} for split in ("train", "validation", "test")]
            listed.append({"config_name": language, "data_files": files})
        (folder / "README.md").write_text(f"---\nconfigs: {json.dumps(listed)}\n---\n")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]).resolve())
