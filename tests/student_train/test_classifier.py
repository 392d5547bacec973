"""Whole runs of students of comparisons: what they write, which rows they read, what they refuse."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from logitbank.errors import ConfigError, StoreError
from logitbank.experiment import TrainingRecord
from logitbank.models.classifier import open_classifier
from logitbank.models.fallbacks import memory_needed
from logitbank.models.pair_head import read_head_settings
from logitbank.models.pair_scoring import score_pairs
from logitbank.preference import SeenPrompts, prompt_keys
from logitbank.storage.results import Catalogue
from logitbank.student_train.classifier.train import PairTraining
from logitbank.student_train.loop import TrainingLoop
from logitbank.student_train.train_command import main
from logitbank.tasks.preference import PairPacker
from tests import processes, tiny
from tests.student_train import preferences
from tests.student_train.preferences import FOLD, HELD, OUTSIDE, PART, TRAIN, configure, train

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return preferences.make_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    return preferences.make_store(tmp_path_factory.mktemp("store"))


def logged(results: Path, metric: str) -> dict[int, float]:
    files = sorted((results / "training_log").glob("*.parquet"))
    rows = [row for path in files for row in pq.read_table(path).to_pylist()]
    return {row["step"]: row["value"] for row in rows if row["metric"] == metric and row["task"] == "all"}


def test_full_fine_tuning_learns_the_rule_and_writes_what_opens_again(model: Path, store: str, tmp_path: Path) -> None:
    settings = ["training.max_steps=60", "training.save_steps=20", "training.save_total_limit=1"]
    config = configure(model, *settings, "distillation.alpha=0", "training.logging_steps=20")
    final = train(config, store, tmp_path / "run", held_out_fold=0)
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["checkpoint-40", "final", "results"]
    settings = read_head_settings(final)
    assert settings is not None
    assert (settings.head, settings.pooling, settings.max_tokens) == ("classifier", "pair", 192)
    classifier = open_classifier(configure(model), device="cpu", checkpoint=final)
    packer = PairPacker(tiny.chat_tokenizer(), max_tokens=192)
    logits = score_pairs(classifier, list(packer.pack_all(TRAIN)), batch_tokens=4096)
    right = logits.argmax(axis=1) == np.array([pair.target for pair in TRAIN]).argmax(axis=1)
    assert right[FOLD != 0].mean() > 0.9
    losses = logged(tmp_path / "run" / "results", "loss")
    assert losses[60] < 0.5 * losses[20]
    record = TrainingRecord.read(final)
    assert record is not None
    assert (record.condition, record.view, record.held_out_fold, record.rows, record.step) == (
        "distilled", "llama", 0, "all", 60,
    )  # fmt: skip
    (row,) = Catalogue([tmp_path / "run" / "results"]).rows("SELECT * FROM runs")
    assert (row["held_out_fold"], row["lambda_distill"], row["condition"]) == (0, None, "distilled")
    assert row["training_set"] == record.training_set is not None


def test_seen_prompts_are_those_of_the_rows_and_of_the_base_model(model: Path, store: str, tmp_path: Path) -> None:
    base = shutil.copytree(model, tmp_path / "base")
    SeenPrompts.of([7, 8], [9]).write(base)
    config = configure(base, "training.max_steps=1", "training.eval_steps=1")
    final = train(config, store, tmp_path / "run", held_out_fold=1, rows="train")
    own = SeenPrompts.of(
        prompt_keys([pair for pair, fold in zip(TRAIN, FOLD, strict=True) if fold != 1]),
        prompt_keys([pair for pair, part in zip(HELD, PART, strict=True) if part == 0]),
    )
    expected = own.union(SeenPrompts.of([7, 8], [9]))
    for name in ("final", "best"):
        seen = SeenPrompts.read(final.parent / name)
        assert seen is not None
        assert (seen.trained.tolist(), seen.selected.tolist()) == (
            expected.trained.tolist(),
            expected.selected.tolist(),
        )


def test_without_evaluations_no_prompt_selected_anything(model: Path, store: str, tmp_path: Path) -> None:
    final = train(configure(model, "training.max_steps=1"), store, tmp_path / "run", rows="external", view=None)
    seen = SeenPrompts.read(final)
    assert seen is not None
    assert seen.trained.tolist() == sorted(prompt_keys(OUTSIDE).tolist())
    assert len(seen.selected) == 0
    assert not (tmp_path / "run" / "best").exists()


def rows_of(config: Any, store: str, output: Path, **changes: Any) -> Any:
    """The rows that a run would learn from, as it holds them."""
    seen: list[Any] = []

    def stop(training: PairTraining) -> None:
        seen.append(training._rows)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainingLoop, "run", stop)
        train(config, store, output, **changes)
    return seen[0]


def test_rows_are_those_asked_for_and_teachers_speak_of_their_own_alone(
    model: Path, store: str, tmp_path: Path
) -> None:
    rows = rows_of(configure(model), store, tmp_path, held_out_fold=2, view="llama+qwen")
    kept = [pair for pair, fold in zip(TRAIN, FOLD, strict=True) if fold != 2]
    assert rows.prompt_key_N.tolist() == prompt_keys([*kept, *OUTSIDE]).tolist()
    assert rows.taught_N.tolist() == [True] * len(kept) + [False] * len(OUTSIDE)
    both = [torch.from_numpy(preferences.logits_of(view)).softmax(1)[: len(kept)] for view in ("llama", "qwen")]
    np.testing.assert_allclose(rows.teacher_NC[: len(kept)], (both[0] + both[1]) / 2, atol=1e-6)
    np.testing.assert_allclose(rows.target_NC, [pair.target for pair in [*kept, *OUTSIDE]], atol=1e-7)
    assert not rows_of(configure(model), store, tmp_path, view=None).taught_N.any()
    assert len(rows_of(configure(model), store, tmp_path, rows="external", view=None)) == len(OUTSIDE)
    limited = rows_of(configure(model, "data.max_train_per_task=5"), store, tmp_path)
    assert len(limited) == len(limited.packed) == 5


def test_lora_trains_adapter_and_head_with_checkpointing_and_letters_train_an_adapter_alone(
    model: Path, store: str, tmp_path: Path
) -> None:
    settings = ["training.use_lora=true", "training.gradient_checkpointing=true", "lora.r=4"]
    for head in ("classifier", "letters"):
        config = configure(model, *settings, f"model.head={head}", "data.max_student_tokens=400")
        final = train(config, store, tmp_path / head)
        adapter = load_file(final / "adapter_model.safetensors")
        assert all(value.abs().sum() > 0 for name, value in adapter.items() if "lora_B" in name)
        assert (final / "classifier_head.safetensors").exists() == (head == "classifier")
        packer = PairPacker(tiny.chat_tokenizer(), max_tokens=400, head=head)
        packed = list(packer.pack_all(TRAIN))
        scores = [
            score_pairs(open_classifier(config, device="cpu", checkpoint=at), packed, batch_tokens=4096)
            for at in ([final, None] if head == "letters" else [final])
        ]
        assert np.ptp(scores[0], axis=0).min() > 0
        if head == "letters":
            assert np.abs(scores[0] - scores[1]).max() > 0.01


def test_training_goes_on_from_the_head_of_the_base_model(model: Path, store: str, tmp_path: Path) -> None:
    first = train(configure(model), store, tmp_path / "first")
    still = ["training.learning_rate=0", "training.max_steps=1"]
    again = train(configure(first, *still, "data.max_student_tokens=160"), store, tmp_path / "again")
    assert (again / "classifier_head.safetensors").read_bytes() == (first / "classifier_head.safetensors").read_bytes()
    settings = read_head_settings(again)
    assert settings is not None
    assert settings.max_tokens == 160
    other = train(configure(first, *still, "model.pooling=last"), store, tmp_path / "other")
    assert not load_file(other / "classifier_head.safetensors")["weight"].any()


def test_the_best_checkpoint_is_that_of_least_log_loss_and_patience_ends_the_run(
    model: Path, store: str, tmp_path: Path
) -> None:
    settings = ["training.max_steps=40", "training.eval_steps=2", "training.patience=2", "training.learning_rate=0.02"]
    config = configure(model, *settings)
    final = train(config, store, tmp_path / "run")
    found = logged(tmp_path / "run" / "results", "selection_log_loss")
    records = [TrainingRecord.read(tmp_path / "run" / name) for name in ("best", "final")]
    best, last = (record for record in records if record is not None)
    assert best.step == min(found, key=lambda step: found[step]) == last.best_step
    assert best.best_log_loss == last.best_log_loss == min(found.values())
    assert last.stopped_early is True
    assert last.step == max(found) == best.step + 2 * 2 < 40
    selection = [pair for pair, part in zip(HELD, PART, strict=True) if part == 0]
    packed = list(PairPacker(tiny.chat_tokenizer(), max_tokens=192).pack_all(selection))
    for checkpoint, record in ((tmp_path / "run" / "best", best), (final, last)):
        logits = score_pairs(open_classifier(config, device="cpu", checkpoint=checkpoint), packed, batch_tokens=8192)
        log_probabilities = torch.from_numpy(logits).double().log_softmax(1)
        targets = torch.tensor([pair.target for pair in selection], dtype=torch.float64)
        expected = float(-(targets * log_probabilities).sum(1).mean())
        assert found[record.step or 0] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("overrides", "changes", "error", "message"),
    [
        ([], {"held_out_fold": 3}, ConfigError, r"--held-out-fold: expected one of the 3 folds of \S+, 0 to 2, got 3"),
        ([], {"held_out_fold": -1}, ConfigError, r"--held-out-fold: .*got -1"),
        (
            [],
            {"held_out_fold": 1, "rows": "external", "view": None},
            ConfigError,
            "external rows do not belong to a fold",
        ),
        ([], {"rows": "external"}, ConfigError, "--view: expected none with --rows external"),
        ([], {"view": "partial"}, StoreError, r"--view partial: fold 2 of"),
        ([], {"view": "partial", "held_out_fold": 0}, StoreError, r"--view partial: fold 2 of"),
        ([], {"view": "gemma"}, StoreError, r"--view gemma: the store .* has no such view"),
        ([], {"view": "llama+llama"}, ConfigError, r"--view: expected each at most once, got llama, llama"),
        (["distillation.view_weights={qwen: 2}"], {}, ConfigError, r"distillation.view_weights.qwen: expected one of"),
        (["training.packing=true"], {}, ConfigError, r"training.packing: expected false for comparisons"),
        (["data.max_student_tokens=40"], {}, ConfigError, r"data.max_student_tokens: expected at least \d+ with this"),
        (["data.max_student_tokens=600"], {}, ConfigError, r"data.max_student_tokens: \S+ reads at most 512 tokens"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_written(
    model: Path,
    store: str,
    tmp_path: Path,
    overrides: list[str],
    changes: dict[str, Any],
    error: type[Exception],
    message: str,
) -> None:
    with pytest.raises(error, match=message) as raised:
        train(configure(model, *overrides), store, tmp_path / "run", **changes)
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "run").exists()


def test_a_view_may_lack_the_fold_that_is_left_out(model: Path, store: str, tmp_path: Path) -> None:
    config = configure(model, "training.max_steps=1")
    assert train(config, store, tmp_path / "run", view="partial", held_out_fold=2).is_dir()


def test_rows_that_the_store_lacks_are_refused(model: Path, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    bare = preferences.make_store(tmp_path / "a", external=[], parts=np.full(len(HELD), 1, np.int8))
    with pytest.raises(ConfigError, match=r"--rows: the store \S+ has no external rows"):
        train(configure(model), bare, tmp_path / "run", rows="external", view=None)
    with pytest.raises(ConfigError, match=r"training.eval_steps: the store \S+ has no validation rows for selection"):
        train(configure(model, "training.eval_steps=1"), bare, tmp_path / "run")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--view", "none", "--view", "llama"], "error: --view: none is cross-entropy only"),
        (["--view", "a", "--view", "b", "tasks=[nli]"], "error: --view: only views of a label store"),
        (
            ["--view", "a", "--held-out-fold", "0", "tasks=[nli]"],
            "error: --held-out-fold: only applies to label stores",
        ),
        (["--view", "a", "--rows", "all", "tasks=[nli]"], "error: --rows: only applies to label stores"),
        (["--view", "fewshot", "tasks=[nli]"], "is a label store, which tasks=[preference] reads"),
    ],
)
def test_options_of_the_other_kind_of_store_are_one_line(
    model: Path, store: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    arguments = ["--store", store, "--output", str(tmp_path / "run"), f"model.name={model}", "tasks=[preference]"]
    with pytest.raises(SystemExit) as stop:
        main([*arguments, *options])
    assert stop.value.code == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert message in line
    assert not (tmp_path / "run").exists()


def command(model: Path, store: str, output: Path, *options: str) -> list[str]:
    """Arguments of `train-student` for a run of dropout, two views, swaps and evaluations."""
    settings = ["model.name=" + str(model), "tasks=[preference]", "data.max_student_tokens=192", "data.swap=all"]
    settings += ["training.precision=fp32", "training.max_steps=8", "training.warmup_steps=1", "lora.dropout=0.1"]
    settings += ["training.global_batch_size=8", "training.micro_batch_size=2", "training.learning_rate=0.01"]
    settings += ["training.logging_steps=1", "training.save_steps=2", "training.eval_steps=2"]
    given = ["--store", store, "--output", str(output), "--view", "llama", "--view", "qwen", "--held-out-fold", "1"]
    return ["train-student", *given, *settings, *options]


def test_the_command_trains_and_two_processes_train_the_same_student(model: Path, store: str, tmp_path: Path) -> None:
    plain = ["lora.dropout=0", "training.max_steps=3"]
    alone = processes.run(*command(model, store, tmp_path / "one", *plain))
    assert alone.returncode == 0, alone.stderr
    assert "with teacher logits" in alone.stdout + alone.stderr
    for rank in processes.run_ranks(2, *command(model, store, tmp_path / "two", *plain)):
        assert rank.returncode == 0, rank.stderr
    one, two = ({**load_file(tmp_path / n / "final" / "classifier_head.safetensors")} for n in ("one", "two"))
    for name, tensor in one.items():
        torch.testing.assert_close(tensor, two[name], rtol=1e-3, atol=1e-5)
    for metric in ("loss", "selection_log_loss", "kl", "accuracy"):
        left, right = (logged(tmp_path / n / "results", metric) for n in ("one", "two"))
        assert left.keys() == right.keys() != set()
        assert [right[step] for step in left] == pytest.approx(list(left.values()), abs=1e-4)
    record = json.loads((tmp_path / "one" / "final" / "training.json").read_text())
    assert (record["view"], record["held_out_fold"]) == ("llama+qwen", 1)


@pytest.mark.parametrize("lora", [True, False])
def test_an_interrupted_run_ends_with_the_same_bits(model: Path, store: str, tmp_path: Path, lora: bool) -> None:
    """The full one is at its best before it is cut off, and runs out of patience afterwards."""
    kind = ["training.use_lora=true", "lora.dropout=0.1"] if lora else ["training.patience=4"]
    settings = ["training.max_steps=9", "training.eval_steps=1", "training.save_steps=3", "data.swap=all", *kind]
    config = configure(model, *settings, "training.learning_rate=0.01")
    whole = train(config, store, tmp_path / "whole", view="llama+qwen")
    output, stopping = tmp_path / "cut", PairTraining.take_step

    def cut(training: PairTraining, step: int) -> bool:
        if step == 4:
            raise RuntimeError("pulled the plug")
        return stopping(training, step)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PairTraining, "take_step", cut)
        with pytest.raises(RuntimeError, match="pulled the plug"):
            train(config, store, output, view="llama+qwen")
    assert not (output / "final").exists()
    again = train(config, store, output, view="llama+qwen")
    for place in ("final", "best"):
        for file in sorted((whole.parent / place).glob("*.safetensors")):
            assert (again.parent / place / file.name).read_bytes() == file.read_bytes(), file.name
    keys = ("step", "best_step", "best_log_loss", "stopped_early")
    records = [json.loads((at / "training.json").read_text()) for at in (whole, again)]
    assert [records[0][key] for key in keys] == [records[1][key] for key in keys]
    assert lora or (records[0]["best_step"] <= 3 and records[0]["stopped_early"])
    for metric in ("loss", "selection_log_loss"):
        assert logged(output / "results", metric) == logged(tmp_path / "whole" / "results", metric)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"held_out_fold": 1}, r"--held-out-fold: .* was trained with none, got 1"),
        ({"rows": "train"}, r"--rows: .* was trained with all, got train"),
        ({"view": "qwen"}, r"--view: .* was trained with llama, got qwen"),
    ],
)
def test_another_run_in_the_same_directory_is_refused(
    model: Path, store: str, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    config = configure(model, "training.max_steps=1")
    train(config, store, tmp_path / "run")
    with pytest.raises(ConfigError, match=message):
        train(config, store, tmp_path / "run", **change)
    with pytest.raises(ConfigError, match=r"data.max_student_tokens: .* was trained with 192, got 200"):
        train(configure(model, "training.max_steps=1", "data.max_student_tokens=200"), store, tmp_path / "run")


def test_epochs_decide_the_steps(model: Path, store: str, tmp_path: Path) -> None:
    final = train(configure(model, "training.epochs=0.5"), store, tmp_path / "run", rows="train", held_out_fold=0)
    record = TrainingRecord.read(final)
    assert record is not None
    assert record.step == 1  # half of 16 rows, 8 a step


@pytest.fixture
def bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets a CPU compute in bfloat16, fast or not."""
    monkeypatch.setattr("logitbank.student_train.setup.has_fast_bfloat16", lambda device: True)


@pytest.mark.usefixtures("bfloat16")
def test_bfloat16_trains_and_evaluates(model: Path, store: str, tmp_path: Path) -> None:
    config = configure(model, "training.precision=bf16", "training.eval_steps=2")
    train(config, store, tmp_path / "run")
    found = [logged(tmp_path / "run" / "results", metric) for metric in ("loss", "selection_log_loss")]
    assert all(np.isfinite(list(values.values())).all() for values in found)


def test_four_bits_train_an_adapter(model: Path, store: str, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    config = configure(model, "training.use_lora=true", "lora.load_in_4bit=true", "training.max_steps=2")
    final = train(config, store, tmp_path / "run")
    adapter = load_file(final / "adapter_model.safetensors")
    assert all(value.abs().sum() > 0 for name, value in adapter.items() if "lora_B" in name)


def test_the_model_that_fits_is_trained_and_kept_when_the_run_is_resumed(
    model: Path, store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    large = preferences.make_model(tmp_path, hidden_size=256, intermediate_size=1024)
    config = configure(large, f"model.fallbacks=[{model}]", "training.max_steps=2", "training.save_steps=1")
    free = {
        "bytes": memory_needed(config, dataclasses.replace(config.model, name=str(model)), CPU, training=True).total
    }
    monkeypatch.setattr("logitbank.student_train.loop.free_memory", lambda device: free["bytes"])
    final = train(config, store, tmp_path / "run")
    record = TrainingRecord.read(final)
    assert record is not None
    assert record.model == record.config["model"]["name"] == str(model)
    assert open_classifier(configure(model), device="cpu", checkpoint=final).settings.hidden_size == 32
    free["bytes"] = 1 << 40  # there is room for the larger one now
    assert train(config, store, tmp_path / "run") == final
    shutil.rmtree(final)
    again = TrainingRecord.read(train(config, store, tmp_path / "run"))
    assert again is not None
    assert again.model == str(model)
    free["bytes"] = 1000
    with pytest.raises(ConfigError, match=r"model.fallbacks: expected a model that fits in the"):
        train(config, store, tmp_path / "other")
    assert not (tmp_path / "other").exists()
