"""What is one evaluation, one setup, one series: equal where scores have to be equal, different where they may not."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from logitbank.configs import Config, Decides, config_keys, config_to_dict, keys_deciding, load_config
from logitbank.evaluation.checkpoints import open_checkpoint
from logitbank.evaluation.identity import Identity, Model, describe_variant, examine, identify, open_tokenizer
from logitbank.evaluation.run import Evaluation, evaluate
from logitbank.storage.results import Catalogue
from logitbank.tasks.prompts import PromptEncoder
from tests.evaluation.conftest import checkpoint
from tests.evaluation.test_evaluate import Parrot


def _identity(config: Any, condition: str = "base", path: Path | None = None) -> Identity:
    opened = None if path is None else open_checkpoint(path)
    return identify(config, condition, opened, examine(config, opened, PromptEncoder(open_tokenizer(config, opened))))


def _setup(identity: Identity) -> str:
    return str(identity.run_row["setup"])


def test_whatever_changes_a_score_is_another_run(config: Any) -> None:
    def run(*overrides: str, condition: str = "base") -> str:
        return _identity(config(*overrides), condition).run

    others = [
        run("evaluation.max_samples=7"),
        run("evaluation.method=likelihood"),
        run("evaluation.sample_seed=1"),
        run("evaluation.max_new_tokens={ner: 13}"),
        run("evaluation.max_prompt_tokens=99"),
        run("evaluation.split=validation"),
        run("data.sources={nli: multi_nli}"),
        run("model.dtype=bfloat16"),
        run(condition="other"),
        run(condition="fewshot"),
        run("fewshot.selection=fixed", condition="fewshot"),
        run("seed=7", condition="fewshot"),
    ]
    assert len({run(), *others}) == len(others) + 1


def test_whatever_decides_no_score_is_the_same_run(config: Any, tiny_model: Path) -> None:
    plain = _identity(config()).run
    for overrides in (
        ["evaluation.batch_tokens=99", "tasks=[pa]", "languages=[hi]"],
        ["fewshot.selection=fixed", "seed=7"],  # no demonstrations are shown
        ["training.tensorboard=true", "training.max_steps=3", "distillation.lambda_distill=2"],
        ["data.max_teacher_tokens=99", "teacher.top_k=5", "model.trust_remote_code=true"],
    ):
        assert _identity(config(*overrides)).run == plain, overrides


def _student(path: Path, config: Any, *overrides: str, weights: bytes = b"w", **about: Any) -> Path:
    asked = config(*overrides)
    settings = config_to_dict(asked)
    return checkpoint(path, weights=weights, view="fewshot", seed=asked.seed, config=settings, **about)


OTHER_VALUES: dict[str, Any] = {
    "tasks": ["nli"],
    "model.dtype": "bfloat16",
    "model.attn_implementation": "eager",
    "training.precision": "bf16",
    "lora.target_modules": ["q_proj"],
}


def _changed(key: str, value: Any) -> Any:
    if key in OTHER_VALUES:
        return OTHER_VALUES[key]
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 1
    return {"nli": 1} if isinstance(value, dict) else "another"


@pytest.fixture(scope="module")
def plain_config(tiny_model: Path) -> Config:
    return load_config([], [f"model.name={tiny_model}"])


@pytest.mark.parametrize("comparisons", [False, True], ids=["tokens", "comparisons"])
@pytest.mark.parametrize("key", config_keys())
def test_a_setup_holds_what_decides_a_student_and_nothing_that_decides_nothing(
    plain_config: Config, tokenizer: Any, tmp_path: Path, key: str, comparisons: bool
) -> None:
    """Every key of the schema, changed in training alone."""
    model = Model("base", "weights", PromptEncoder(tokenizer))
    kept = comparisons and key == "tasks"  # what makes them comparisons
    setups = []
    for name in ("plain", "changed"):
        settings = config_to_dict(plain_config)
        if comparisons:
            settings["tasks"] = ["preference"]
        if name == "changed" and not kept:
            group, _, leaf = key.rpartition(".")
            place = settings[group] if group else settings
            place[leaf] = _changed(key, place[leaf])
        student = open_checkpoint(checkpoint(tmp_path / name, view="fewshot", config=settings))
        setups.append(_setup(identify(plain_config, "distilled", student, model)))
    # a run's record says how many steps its epochs were
    own_column = key in ("seed", "model.name", "model.revision", "training.epochs") or key.startswith("distillation.")
    deciding = key in keys_deciding(Decides.STUDENT, comparisons=comparisons) and not kept
    assert (setups[0] != setups[1]) == (deciding and not own_column)


def test_seeds_of_one_student_share_their_setup_and_not_their_run(config: Any, tmp_path: Path) -> None:
    one = _identity(config(), "distilled", _student(tmp_path / "a", config, "seed=1", run="a"))
    two = _identity(config(), "distilled", _student(tmp_path / "b", config, "seed=2", run="b"))
    assert _setup(one) == _setup(two)
    assert one.run != two.run
    assert (one.columns["seed"], two.columns["seed"]) == (1, 2)


def test_students_that_leave_out_different_folds_share_their_setup_and_not_their_run(
    config: Any, tmp_path: Path
) -> None:
    def student(fold: int | None, steps: int, epochs: float | None) -> Identity:
        training = {"tasks": ["nli"], "training": {"epochs": epochs, "max_steps": steps}}
        name = f"fold-{fold}-{steps}-{epochs}"
        about = {"run": name, "config": training, "held_out_fold": fold, "step": steps}
        return _identity(config(), "distilled", checkpoint(tmp_path / name, weights=name.encode(), **about))

    one, two = student(0, 97, 2.0), student(1, 98, 2.0)
    assert _setup(one) == _setup(two), "the same epochs of folds of other sizes"
    assert one.run != two.run
    assert [each.run_row["held_out_fold"] for each in (one, two)] == [0, 1]
    others = (student(0, 97, 3.0), student(0, 97, None), student(1, 98, None), student(None, 97, 2.0))
    assert len({_setup(each) for each in (one, *others)}) == 5


@pytest.mark.parametrize(
    ("about", "same"),
    [
        ({"training_set": "other"}, False),
        ({"store_fingerprint": "other"}, True),  # another teacher of the same examples: `taught_by` says so
        ({"training_set": None}, False),
        ({"store": "moved"}, True),
    ],
)
def test_two_stores_share_a_setup_where_they_hold_the_same_examples(
    config: Any, tmp_path: Path, about: dict[str, Any], same: bool
) -> None:
    one = _identity(config(), "distilled", _student(tmp_path / "a", config))
    other = _identity(config(), "distilled", _student(tmp_path / "b", config, **about))
    assert (_setup(one) == _setup(other)) == same


def test_students_of_two_teachers_are_two_series(config: Any, tokenizer: Any, tmp_path: Path) -> None:
    """Settings, seed and steps alike: one must not take the other's place, nor be its second seed."""
    small = config("tasks=[nli]", "languages=[en]")
    for name, fingerprint, seed in (("a", "aaaaaaaa", 1), ("b", "bbbbbbbb", 1), ("c", "bbbbbbbb", 2)):
        about = {"run": name, "store_fingerprint": fingerprint, "view_fingerprint": fingerprint}
        path = _student(tmp_path / name, config, f"seed={seed}", **about, teacher=f"org/teacher-{fingerprint[0]}")
        evaluate(Evaluation(small, "distilled", open_checkpoint(path), tmp_path / "r"), opener=Parrot(tokenizer))
    cells = Catalogue([tmp_path / "r"]).rows("SELECT taught_by, seeds FROM cells WHERE is_primary ORDER BY ALL")
    assert [tuple(row.values()) for row in cells] == [
        ("teacher-a fewshot K=256 aaaaaa", 1),
        ("teacher-b fewshot K=256 bbbbbb", 2),
    ]


def test_checkpoints_of_other_programs_are_known_by_their_weights(config: Any, tmp_path: Path) -> None:
    one = _identity(config(), "mine", checkpoint(tmp_path / "a", record=False))
    two = _identity(config(), "mine", checkpoint(tmp_path / "b", record=False, weights=b"others"))
    assert _setup(one) != _setup(two)
    steps = [_identity(config(), "mine", checkpoint(tmp_path / "c" / f"checkpoint-{n}", record=False)) for n in (1, 2)]
    assert _setup(steps[0]) == _setup(steps[1])
    assert steps[0].run != steps[1].run


def _zero(path: Path) -> None:
    """All weights zero, under the same names, with the same size."""
    file = path / "model.safetensors"
    tensors = {name: torch.zeros_like(tensor) for name, tensor in safetensors.torch.load_file(file).items()}
    safetensors.torch.save_file(tensors, file, metadata={"format": "pt"})


def _other_template(path: Path) -> None:
    file = path / "chat_template.jinja"
    file.write_text(file.read_text().replace("<start>{{ m.role }}", "<start>:{{ m.role }}"))


def _other_vocabulary(path: Path) -> None:
    content = json.loads((path / "tokenizer.json").read_text())
    vocabulary = content["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    (path / "tokenizer.json").write_text(json.dumps(content))


@pytest.mark.parametrize("change", [_zero, _other_template, _other_vocabulary])
def test_a_model_that_changed_under_its_name_is_evaluated_again(
    change: Any, config: Any, tiny_model: Path, tmp_path: Path, capsys: Any
) -> None:
    model = tmp_path / "model"
    shutil.copytree(tiny_model, model)
    both = config(f"model.name={model}", "tasks=[nli]", "languages=[en,hi]")
    evaluate(Evaluation(both, "base", None, tmp_path / "r"))
    change(model)
    capsys.readouterr()
    evaluate(Evaluation(dataclasses.replace(both, languages=["en"]), "base", None, tmp_path / "r"))
    assert "already finished" not in capsys.readouterr().out
    catalogue = Catalogue([tmp_path / "r"])
    rows = catalogue.rows("SELECT setup, languages FROM task_averages WHERE is_primary ORDER BY languages")
    assert [row["languages"] for row in rows] == [1, 2], "the old cells are not mixed with the new"
    assert rows[0]["setup"] != rows[1]["setup"]


def test_an_adapter_that_changed_in_place_is_evaluated_again(config: Any, tokenizer: Any, tmp_path: Path) -> None:
    asked = config("tasks=[nli]", "languages=[en]")
    for weights in (b"one", b"two"):
        path = _student(tmp_path / "a", config, weights=weights)
        parrot = Parrot(tokenizer, answer=weights.decode())
        evaluate(Evaluation(asked, "distilled", open_checkpoint(path), tmp_path / "r"), opener=parrot)
        assert len(parrot.asked) == 6
    (cell,) = Catalogue([tmp_path / "r"]).rows("SELECT run FROM scores WHERE is_primary")
    outputs = Catalogue([tmp_path / "r"]).rows(f"SELECT DISTINCT output FROM predictions WHERE run = '{cell['run']}'")
    assert outputs == [{"output": "two"}], "the newest counts, alone"


@pytest.mark.parametrize(("split", "condition"), [("test", "base"), ("validation", "fewshot")])
def test_data_that_changed_are_asked_again(
    split: str, condition: str, config: Any, tokenizer: Any, mirror: Path, tmp_path: Path, capsys: Any
) -> None:
    """Questions, or the pool that demonstrations are drawn from; then back again."""
    import datasets

    changing = tmp_path / "hub"
    shutil.copytree(mirror, changing)
    file = changing / "facebook/xnli/en" / f"{split}-0.parquet"
    before = file.read_bytes()
    asked = config("tasks=[nli]", f"data.mirror={changing}", "languages=[en,hi]")

    def answered() -> int:
        parrot = Parrot(tokenizer)
        evaluate(Evaluation(asked, condition, None, tmp_path / "r"), opener=parrot)
        return len(parrot.asked)

    assert [answered(), answered()] == [12, 0]
    rows = datasets.Dataset.from_parquet(str(file), cache_dir=str(tmp_path / "cache"))
    rows.map(lambda row: {"premise": row["premise"] + "!"}).to_parquet(file)
    capsys.readouterr()
    assert answered() == 12
    assert f"{condition}: the examples of nli/en have changed" in capsys.readouterr().out
    assert answered() == 0
    count = "SELECT count(DISTINCT run) AS runs, count(*) AS cells FROM scores WHERE is_primary"
    assert Catalogue([tmp_path / "r"]).rows(count) == [{"runs": 1, "cells": 2}]
    file.write_bytes(before)
    assert answered() == 12, "tables show the newest, so what was there before the change has to be the newest again"


def test_the_variant_leaves_out_what_is_idle() -> None:
    plain = {"lambda_distill": 0.5, "strategy": "fixed"}
    assert describe_variant({}) is None
    assert describe_variant(plain) == "λ=0.5"
    idle = {
        "lambda_per_task": {"nli": 9.0},
        "ema_decay": 0.5,
        "conflict_parameters": "q",
        "schedule_steps": 3,
        "meta_every": 7,
    }
    assert describe_variant(plain | idle) == "λ=0.5"
    used = describe_variant({**plain, **idle, "strategy": "per_task*loss_ratio", "schedule": "linear"})
    assert used == (
        "per_task*loss_ratio λ=0.5 lambda_per_task={'nli': 9.0} schedule=linear schedule_steps=3 ema_decay=0.5"
    )
    assert describe_variant({**plain, "loss": "jsd", "temperature": 2.0}) == "λ=0.5 loss=jsd temperature=2.0"


def test_the_report_of_a_results_directory_of_everything(config: Any, tokenizer: Any, tmp_path: Path) -> None:
    """Two teachers, two lengths, a half-done run: every gap is between runs that differ in that alone."""
    results = tmp_path / "r"

    def put(name: str, condition: str, languages: str, *overrides: str, answer: str, **about: Any) -> None:
        path = _student(tmp_path / name, config, *overrides, run=name, **about)
        if condition == "finetuned":
            content = json.loads((path / "training.json").read_text()) | {"view": None, "view_fingerprint": None}
            (path / "training.json").write_text(json.dumps(content))
        asked = config("tasks=[nli]", f"languages=[{languages}]")
        evaluate(Evaluation(asked, condition, open_checkpoint(path), results), opener=Parrot(tokenizer, answer))

    long, short = "training.max_steps=1000", "training.max_steps=200"
    large = {"store_fingerprint": "cccccc", "view_fingerprint": "cccccc"}
    put("sft", "finetuned", "en,hi", long, answer="neutral")
    put("sft-200", "finetuned", "en,hi", short, answer="neutral", step=200)
    put("kd", "distilled", "en", long, answer="entailment")
    put("kd-checkpoint-200", "distilled", "en,hi", long, answer="entailment", step=200)
    put("kd-200", "distilled", "en,hi", short, answer="contradiction", step=200)
    put("kd-large", "distilled", "en,hi", long, answer="entailment", **large)
    catalogue = Catalogue([results])
    gaps = catalogue.rows(
        "SELECT max_steps, step, taught_by, count(*) AS n FROM gaps WHERE is_primary GROUP BY ALL ORDER BY ALL"
    )
    assert [tuple(row.values()) for row in gaps] == [
        (200, 200, "teacher fewshot K=256 b1b1b1", 2),
        (1000, 1000, "teacher fewshot K=256 b1b1b1", 1),
        (1000, 1000, "teacher fewshot K=256 cccccc", 2),
    ]
