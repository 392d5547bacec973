"""A tiny random model with a byte tokenizer, a tiny mirror of the hub, and result rows made by hand."""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch

from logitbank.configs import Config, load_config
from logitbank.storage.results.rows import write_rows
from tests import tiny


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    return tiny.chat_tokenizer()


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> Path:
    """Directory of a random Qwen3 with 2 layers; its own defaults would sample."""
    path = tmp_path_factory.mktemp("tiny") / "tiny-qwen3"
    return tiny.save_model(path, tokenizer, rows=264, tie_word_embeddings=False, initializer_range=0.4)


@pytest.fixture(scope="session")
def mirror(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """XNLI in en and hi, PAWS-X in en, WikiANN in en and hi: 12 rows in each split."""
    root = tmp_path_factory.mktemp("hub")
    for language in ("en", "hi"):
        rows = [{"premise": f"p {i}", "hypothesis": f"h {i}", "label": i % 3} for i in range(12)]
        _dataset(root / "facebook/xnli", language, rows)
    pairs = [{"id": i, "sentence1": f"a {i}", "sentence2": f"b {i}", "label": i % 2} for i in range(12)]
    _dataset(root / "google-research-datasets/paws-x", "en", pairs)
    tagged: list[dict[str, Any]] = [
        {"tokens": ["Ada", "met", "Bob", str(i)], "ner_tags": [1, 0, 1, 0]} for i in range(12)
    ]
    for language in ("en", "hi"):
        _dataset(root / "unimelb-nlp/wikiann", language, tagged)
    return root


def _dataset(folder: Path, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
    (folder / name).mkdir(parents=True)
    files = []
    for split in ("train", "validation", "test"):
        marked = [{k: f"{v} {split}" if k in ("premise", "sentence1") else v for k, v in row.items()} for row in rows]
        datasets.Dataset.from_list(marked).to_parquet(folder / name / f"{split}-0.parquet")
        files.append({"split": split, "path": f"{name}/{split}-*"})
    readme = folder / "README.md"
    known = json.loads(readme.read_text().splitlines()[1].removeprefix("configs: ")) if readme.exists() else []
    known.append({"config_name": name, "data_files": files})
    readme.write_text(f"---\nconfigs: {json.dumps(known)}\n---\n")


@pytest.fixture
def config(tiny_model: Path, mirror: Path) -> Callable[..., Config]:
    """`config("key=value", …)`: nli, pa and ner in en and hi on the tiny model, 6 examples a cell."""

    def make(*overrides: str) -> Config:
        return load_config([], [*base_overrides(tiny_model, mirror), *overrides])

    return make


def base_overrides(tiny_model: Path, mirror: Path) -> list[str]:
    return [
        f"model.name={tiny_model}",
        "model.dtype=float32",
        f"data.mirror={mirror}",
        "tasks=[nli,pa,ner]",
        "languages=[en,hi]",
        "evaluation.max_samples=6",
        "evaluation.max_new_tokens={ner: 12}",
        "data.sources={nli: xnli}",
    ]


def record(**about: Any) -> dict[str, Any]:
    """Content of a checkpoint's `training.json`."""
    defaults = {
        "run": "student-1",
        "condition": "distilled",
        "model": "m",
        "view": None,
        "seed": 42,
        "config": {},
        "store": "store",
        "store_fingerprint": "a1a1a1a1a1",
        "view_fingerprint": "b1b1b1b1b1" if about.get("view") else None,
        "versions": {},
        "training_set": "d1d1d1d1d1",
        "teacher": "org/teacher",
        "top_k": 256,
        "step": 1000,
    }
    return {**defaults, **about}


def checkpoint(path: Path, *, weights: bytes = b"adapter", **about: Any) -> Path:
    """Directory that looks like an adapter; `about` goes into `training.json`, `record=False` leaves that out."""
    path.mkdir(parents=True, exist_ok=True)
    (path / "adapter_config.json").write_text("{}")
    (path / "adapter_model.safetensors").write_bytes(weights)
    if about.pop("record", True):
        about.setdefault("model", "tiny-qwen3")
        (path / "training.json").write_text(json.dumps(record(**about)))
    return path


def add_run(
    results: Path,
    cells: Mapping[tuple[str, str], float],
    *,
    model: str = "m",
    condition: str = "base",
    seed: int = 42,
    step: int | None = None,
    variant: str | None = None,
    setup: str = "s",
    lambda_distill: float | None = None,
    day: int = 1,
    examples: int = 500,
    about: Mapping[str, Any] | None = None,
    asked: Mapping[str, Any] | None = None,
) -> str:
    """Write one evaluation's rows of `runs` and `metrics`; `cells` maps (task, language) to a fraction.

    `about` and `asked` are more columns of `runs` and of `metrics`. Called again with the same identity and other
    cells, it adds them to the run; another `day` makes another run.
    """
    run = f"{condition}-{model}-{seed}-{step}-{variant or ''}-{setup}-{day}"
    run = run.replace("λ", "l").replace(" ", "_").replace("/", "_")
    identity = {"run": run, "model": model, "condition": condition, "seed": seed, "step": step}
    created = datetime.datetime(2026, 1, day, tzinfo=datetime.UTC)
    shared = {"kind": "evaluation", "variant": variant, "setup": setup, "lambda_distill": lambda_distill}
    write_rows(results, "runs", [{**identity, **shared, **(about or {}), "created_at": created}], run)
    rows = [
        {
            **identity,
            "task": task,
            "language": language,
            "split": "test",
            "method": "generate",
            "metric": "f1" if task in ("qa", "ner") else "accuracy",
            "value": value,
            "is_primary": True,
            "examples": examples,
            **(asked or {}),
        }
        for (task, language), value in cells.items()
    ]
    write_rows(results, "metrics", rows, f"{run}@{'.'.join('-'.join(cell) for cell in cells)}")
    return run


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> Path:
    """Folder of comparisons; see `comparisons.write_files`."""
    from tests.evaluation import comparisons  # which needs this module

    return comparisons.write_files(tmp_path_factory.mktemp("comparisons"), tokenizer)


@pytest.fixture
def comparing(tiny_model: Path, files: Path) -> Callable[..., Config]:
    """`comparing("key=value", …)`: the comparisons of `files` on the tiny model."""

    def configured(*overrides: str) -> Config:
        own = [f"preference.{split}={files / split}.csv" for split in ("test", "validation")]
        return load_config([], [f"model.name={tiny_model}", "tasks=[preference]", *own, *overrides])

    return configured


@pytest.fixture
def student(tmp_path: Path) -> Path:
    """What looks like an adapter with a head that was taught by a view."""
    from tests.evaluation import comparisons  # which needs this module

    return comparisons.classifier_checkpoint(tmp_path / "student" / "final", view="llama", teacher="org/llama")
