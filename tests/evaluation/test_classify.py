"""Models of preferences are scored at every length and in both orders, averaged first, and calibrated once."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from logitbank.configs import Config, data_settings
from logitbank.errors import ConfigError, StoreError
from logitbank.evaluation import evaluate_command
from logitbank.evaluation.checkpoints import open_checkpoint, trained_from
from logitbank.evaluation.identity import describe_weights
from logitbank.evaluation.pair_scores import open_scorer
from logitbank.models.classifier import open_classifier
from logitbank.models.pair_scoring import score_pairs
from logitbank.preference import CLASSES, SeenPrompts, prompt_keys
from logitbank.storage import LabelStore
from logitbank.storage.results.catalogue import Catalogue
from logitbank.tasks.preference import PairPacker, load_pairs
from tests import tiny
from tests.evaluation.comparisons import (
    Formula,
    classifier_checkpoint,
    evaluated,
    gold,
    metrics_in,
    never,
    numbers,
    probabilities,
    rows,
    write_csv,
)
from tests.storage import label_stores

Make = Callable[..., Config]


def test_rows_metrics_and_the_run(
    comparing: Make, student: Path, tokenizer: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = comparing()
    found = evaluated(config, student, tmp_path / "r", Formula())
    pairs = load_pairs("test", data_settings(config))
    expected = probabilities(pairs, tokenizer, 400)
    targets = np.array([pair.target for pair in pairs])
    assert [row["example_id"] for row in found] == [f"preference/und/test/r1-{index}" for index in range(24)]
    for row, pair, p, target in zip(found, pairs, expected, targets, strict=True):
        assert numbers(row, "p") == numbers(row, "raw") == pytest.approx(list(p), abs=1e-6)
        assert list(json.loads(row["output"]).values()) == numbers(row, "p")
        assert json.loads(row["parsed"]) == CLASSES[int(p.argmax())]
        assert row["gold"] == gold(CLASSES[int(target.argmax())])
        assert json.loads(row["question"])["response_b"] == list(pair.response_b)
        assert row["score"] == pytest.approx(float(np.log(p[target.argmax()])), abs=1e-5)
        assert (row["cluster"], row["method"], row["language"]) == (f"{pair.prompt_key:016x}", "classify", "und")
    assert len({row["cluster"] for row in found}) == 12, "two comparisons have a prompt each"
    metrics = metrics_in(tmp_path / "r")
    assert list(metrics) == ["log_loss", "accuracy", "brier", "ece"]
    assert metrics["log_loss"] == pytest.approx(-(targets * np.log(expected)).sum() / 24, abs=1e-6)
    assert metrics["accuracy"] == pytest.approx((expected.argmax(1) == targets.argmax(1)).mean())
    assert metrics["brier"] == pytest.approx(np.square(expected - targets).sum(1).mean(), abs=1e-6)
    (primary,) = Catalogue([tmp_path / "r"]).rows("SELECT * FROM metrics WHERE is_primary")
    assert (primary["metric"], primary["examples"]) == ("log_loss", 24)
    (run,) = Catalogue([tmp_path / "r"]).rows("SELECT * FROM runs")
    assert (run["variant"], run["lambda_distill"], run["strategy"]) == ("α=0.7 temperature=2", None, None)
    printed = capsys.readouterr().out
    assert f"distilled preference/und  log_loss {metrics['log_loss']:.4f}  accuracy" in printed
    assert "of 24 comparisons cut to 400 tokens" in printed


@pytest.mark.numeric
def test_several_lengths_give_the_mean_of_single_runs(comparing: Make, student: Path, tmp_path: Path) -> None:
    single = [
        evaluated(comparing(f"evaluation.tta_tokens=[{tokens}]"), student, tmp_path / str(tokens), Formula())
        for tokens in (330, 400)
    ]
    together = evaluated(comparing("evaluation.tta_tokens=[400,330]"), student, tmp_path / "both", Formula())
    assert any(numbers(one, "p") != numbers(other, "p") for one, other in zip(*single, strict=True))
    for one, other, both in zip(*single, together, strict=True):
        mean = (np.array(numbers(one, "p")) + numbers(other, "p")) / 2
        assert numbers(both, "p") == pytest.approx(list(mean), abs=1e-14)
        assert (both["prompt_hash"], both["prompt"]) == (other["prompt_hash"], other["prompt"]), "the longest"


@pytest.mark.numeric
def test_averaging_both_orders_knows_no_position(comparing: Make, student: Path, files: Path, tmp_path: Path) -> None:
    found = [
        evaluated(comparing("evaluation.swap_average=true", *changes), student, tmp_path / str(index), Formula())
        for index, changes in enumerate([(), (f"preference.test={files / 'swapped.csv'}",)])
    ]
    alone = evaluated(comparing(), student, tmp_path / "alone", Formula())
    for row, other, plain in zip(*found, alone, strict=True):
        given, turned = np.array(numbers(row, "given")), np.array(numbers(row, "swapped"))
        assert list(given) == pytest.approx(numbers(plain, "p"), abs=1e-15)
        assert numbers(row, "p") == pytest.approx(list((given + turned) / 2), abs=1e-15)
        a, b, tie = numbers(other, "p")
        assert numbers(row, "p") == pytest.approx([b, a, tie], abs=1e-15)
        assert numbers(other, "swapped")[0] == pytest.approx(given[1], abs=1e-15), "columns are swapped back"
    assert any(numbers(row, "given") != pytest.approx(numbers(row, "swapped")) for row in found[0])


def test_rows_without_labels_are_predicted_and_no_more(
    comparing: Make,
    student: Path,
    files: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = comparing(f"preference.test={files / 'unlabelled.csv'}")
    labelled = evaluated(comparing(), student, tmp_path / "l", Formula())
    found = evaluated(config, student, tmp_path / "r", Formula())
    assert [(row["gold"], row["score"]) for row in found] == [(None, None)] * 24
    assert [numbers(row, "p") for row in found] == [numbers(row, "p") for row in labelled]
    assert not (tmp_path / "r" / "metrics").exists()
    assert "no labels, so no metrics; query-results submission takes" in capsys.readouterr().out
    evaluated(config, student, tmp_path / "r", never)
    write_csv(tmp_path / "other.csv", [{k: v for k, v in row.items() if k != "winner"} for row in rows(8, seed=7)])
    other = evaluated(comparing(f"preference.test={tmp_path / 'other.csv'}"), student, tmp_path / "r", Formula())
    assert len(other) == 8, "other rows are no finished cell"


def test_labels_of_some_rows_are_refused(comparing: Make, student: Path, tmp_path: Path) -> None:
    mixed = [{**row, "winner": "" if index else "tie"} for index, row in enumerate(rows(6, seed=1))]
    config = comparing(f"preference.test={write_csv(tmp_path / 'mixed.csv', mixed)}")
    with pytest.raises(ConfigError, match="labels in all rows of test or in none, got them in 1 of 6"):
        evaluated(config, student, tmp_path / "r", never)


def test_a_limit_takes_the_same_rows_in_their_order(
    comparing: Make, student: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    taken = []
    for limit in (5, 9):
        found = evaluated(comparing(f"evaluation.max_samples={limit}"), student, tmp_path / "r", Formula())
        taken.append([int(row["example_id"].rpartition("-")[2]) for row in found])
        assert f"{limit} of 24 comparisons of test (evaluation.max_samples)" in capsys.readouterr().out
        assert taken[-1] == sorted(taken[-1])
        assert len(taken[-1]) == limit
    assert set(taken[0]) < set(taken[1])
    found = evaluated(
        comparing("evaluation.max_samples=9", "evaluation.sample_seed=1"), student, tmp_path / "r", Formula()
    )
    assert [int(row["example_id"].rpartition("-")[2]) for row in found] != taken[1]


def test_an_interrupted_evaluation_is_scored_without_the_model(comparing: Make, student: Path, tmp_path: Path) -> None:
    evaluated(comparing(), student, tmp_path / "r", Formula())
    before = metrics_in(tmp_path / "r")
    (metrics,) = (tmp_path / "r" / "metrics").iterdir()
    metrics.unlink()
    evaluated(comparing(), student, tmp_path / "r", never)
    assert metrics_in(tmp_path / "r") == before
    metrics.unlink()
    other = comparing(f"preference.test={write_csv(tmp_path / 'o.csv', rows(24, seed=5))}")
    with pytest.raises(StoreError, match="left by an interrupted run on different data; delete it"):
        evaluated(other, student, tmp_path / "r", never)


def test_changed_rows_are_evaluated_again(
    comparing: Make, student: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluated(comparing(), student, tmp_path / "r", Formula())
    other = comparing(f"preference.test={write_csv(tmp_path / 'o.csv', rows(24, seed=5))}")
    found = evaluated(other, student, tmp_path / "r", Formula())
    assert "the examples of preference/und have changed" in capsys.readouterr().out
    assert found[0]["example_id"].endswith("r5-0")


def test_what_a_student_knows_of_the_evaluated_rows_is_said(
    comparing: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keys = prompt_keys(load_pairs("test", data_settings(comparing())))
    directory = classifier_checkpoint(tmp_path / "c", seen=SeenPrompts.of(keys[:2]))
    evaluated(comparing(), directory, tmp_path / "r", Formula())
    assert f"warning: {directory} was trained on the prompts of 2 of 24 rows of test" in capsys.readouterr().out


def test_all_but_the_first_worker_have_nothing_to_do(comparing: Make, student: Path, tmp_path: Path) -> None:
    evaluate_command.main(
        [
            "--results",
            str(tmp_path),
            "--checkpoint",
            str(student),
            "--worker",
            "1/2",
            *_arguments(comparing()),
        ]
    )
    assert list(tmp_path.glob("metrics/*")) == []


def _arguments(config: Config) -> list[str]:
    kept = ("train", "validation", "test")
    files = [f"preference.{name}={value}" for name in kept if (value := getattr(config.preference, name))]
    return [f"model.name={config.model.name}", "tasks=[preference]", *files]


@pytest.mark.parametrize(
    ("overrides", "options", "said"),
    [
        ([], ["--condition", "base"], "has no classifier.json, so it has no trained head"),
        ([], ["--condition", "fewshot"], "--condition: fewshot shows demonstrations, but preference has none"),
        (["model.head=letters"], ["--condition", "base", "--calibrate"], "--calibrate: a temperature is stored with"),
        ([], ["CHECKPOINT", "--calibrate", "--no-calibration"], "expected one of --calibrate and --no-calibration"),
        (["evaluation.engine=vllm"], ["CHECKPOINT"], "evaluation.engine: vllm has no class logits; expected hf"),
        ([], ["CHECKPOINT", "--view", "llama"], "--view: not supported for comparisons"),
        ([], ["CHECKPOINT", "--store", "s"], "--store: names the label store of evaluation.split=held_out"),
        (["evaluation.split=held_out"], ["CHECKPOINT"], "expected a --checkpoint of train-student --held-out-fold"),
        (
            ["evaluation.tta_tokens=[512,2048]"],
            ["CHECKPOINT"],
            "expected at most 1,024 tokens, the limit of .* got 2,048",
        ),
        (["model.head=letters"], ["CHECKPOINT"], "model.head: expected classifier, the head of .* got letters"),
        (["evaluation.tta_tokens=[64]"], ["CHECKPOINT"], "evaluation.tta_tokens: expected at least"),
        (
            ["tasks=[nli]"],
            ["--condition", "base", "--calibrate"],
            "--calibrate: works with tasks=.preference. only, got nli",
        ),
        (
            ["tasks=[nli]", "evaluation.method=classify"],
            ["--condition", "base"],
            "evaluation.method: classify works with",
        ),
    ],
)
def test_refusals(
    comparing: Make,
    student: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    overrides: list[str],
    options: list[str],
    said: str,
) -> None:
    given = " ".join(options).replace("CHECKPOINT", f"--checkpoint {student}").split()
    with pytest.raises(SystemExit) as stopped:
        evaluate_command.main(["--results", str(tmp_path / "r"), *given, *_arguments(comparing()), *overrides])
    assert stopped.value.code == 2
    error = capsys.readouterr().err.strip()
    assert "\n" not in error
    assert re.search(said, error), error
    assert not (tmp_path / "r").exists()


def _held_out(tmp_path: Path, fold: int | None, **about: Any) -> tuple[str, Path]:
    """A label store, and a student that left a fold of it out."""
    url = str(tmp_path / "store")
    with label_stores.builder(url):
        pass
    other = [pair for pair, of in zip(label_stores.TRAIN, label_stores.FOLD, strict=True) if of != fold]
    seen = about.pop("seen", SeenPrompts.of(prompt_keys(other)))
    fingerprint = LabelStore.open(url).info.fingerprint
    directory = classifier_checkpoint(
        tmp_path / "c", seen=seen, **{"held_out_fold": fold, "store_fingerprint": fingerprint, **about}
    )
    return url, directory


def test_the_fold_that_a_student_was_not_trained_on(comparing: Make, tmp_path: Path) -> None:
    url, directory = _held_out(tmp_path, 1)
    found = evaluated(comparing("evaluation.split=held_out"), directory, tmp_path / "r", Formula(), store=url)
    own = [pair for pair, of in zip(label_stores.TRAIN, label_stores.FOLD, strict=True) if of == 1]
    assert [row["example_id"] for row in found] == [pair.example_id for pair in own]
    assert [row["gold"] for row in found] == [
        json.dumps(dict(zip(CLASSES, map(float, np.float32(pair.target)), strict=True))) for pair in own
    ]
    (run,) = Catalogue([tmp_path / "r"]).rows("SELECT held_out_fold, store_fingerprint FROM runs")
    assert run["held_out_fold"] == 1


@pytest.mark.parametrize(
    ("fold", "about", "said"),
    [
        (None, {}, "expected a --checkpoint of train-student --held-out-fold, got"),
        (1, {"store_fingerprint": "f" * 40}, "--store: expected the store ffffffffffff, from which"),
        (
            1,
            {"seen": SeenPrompts.of(prompt_keys(label_stores.TRAIN))},
            "was trained on the prompts of 14 of the 14 rows",
        ),
    ],
)
def test_folds_that_are_not_held_out_are_refused(
    comparing: Make, tmp_path: Path, fold: int | None, about: dict[str, Any], said: str
) -> None:
    url, directory = _held_out(tmp_path, fold, **about)
    with pytest.raises(ConfigError, match=said):
        evaluated(comparing("evaluation.split=held_out"), directory, tmp_path / "r", never, store=url)
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize("head", ["classifier", "letters"])
def test_a_real_model_through_the_command(
    comparing: Make, tiny_model: Path, tmp_path: Path, tokenizer: Any, head: str
) -> None:
    config = comparing(f"model.head={head}", "model.dtype=float32")
    options = ["--condition", "base"]
    if head == "classifier":
        directory = tmp_path / "c"
        classifier = open_classifier(config, device="cpu", new_head=True)
        torch.nn.init.normal_(classifier.head.linear.weight)  # type: ignore[union-attr]
        directory.mkdir()
        for file in tiny_model.iterdir():
            (directory / file.name).write_bytes(file.read_bytes())
        classifier.save_head(directory)
        options = ["--condition", "mine", "--new-condition", "--checkpoint", str(directory)]
    else:
        classifier = open_classifier(config, device="cpu")
    overrides = [
        f"model.head={head}",
        "model.dtype=float32",
        "evaluation.swap_average=true",
        "evaluation.max_samples=4",
    ]
    evaluate_command.main(["--results", str(tmp_path / "r"), *options, *_arguments(config), *overrides])
    found = Catalogue([tmp_path / "r"]).rows("SELECT * FROM predictions")
    pairs = {pair.example_id: pair for pair in load_pairs("test", data_settings(config))}
    packer = PairPacker(tokenizer, max_tokens=1024, head=head)
    for row in found:
        pair = pairs[row["example_id"]]
        for kind, each in (("given", pair), ("swapped", pair.swapped())):
            logits = torch.from_numpy(score_pairs(classifier, [packer.pack(each)], batch_tokens=1)).double()
            a, b, tie = logits.softmax(-1)[0].tolist()
            expected = [a, b, tie] if kind == "given" else [b, a, tie]
            # padding and batches move float32 logits of size 1 by some 1e-6
            assert numbers(row, kind) == pytest.approx(expected, abs=2e-5)


def test_an_encoder_without_template_or_end_of_text(comparing: Make, tmp_path: Path) -> None:
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2}
    bert = transformers.BertModel(transformers.BertConfig(**shape, vocab_size=264, max_position_embeddings=512))
    directory = tmp_path / "bert"
    bert.save_pretrained(directory)
    tiny.byte_tokenizer(eos=None).save_pretrained(directory)
    config = comparing(f"model.name={directory}", "data.max_student_tokens=400", "evaluation.max_samples=3")
    classifier = open_classifier(config, device="cpu", new_head=True)
    classifier.save_head(directory)
    found = evaluated(config, directory, tmp_path / "r", open_scorer)
    assert [numbers(row, "p") for row in found] == [pytest.approx([1 / 3] * 3)] * 3, "a head of zeros"
    (run,) = Catalogue([tmp_path / "r"]).rows("SELECT tokenizer, template FROM runs")
    assert run["tokenizer"] is not None
    assert run["template"] is None


def test_eight_bits_are_quantised_as_the_model_is_opened(comparing: Make, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    config = comparing("model.head=letters", "model.dtype=float32", "evaluation.max_samples=4")
    whole, small = (
        evaluated(
            dataclasses.replace(config, evaluation=evaluation), None, tmp_path / "r", open_scorer, condition="base"
        )
        for evaluation in (config.evaluation, dataclasses.replace(config.evaluation, load_in_8bit=True))
    )
    for one, other in zip(whole, small, strict=True):
        assert numbers(one, "p") != numbers(other, "p")
        assert numbers(one, "p") == pytest.approx(numbers(other, "p"), abs=0.05)


def test_a_student_of_a_fallback_is_evaluated_on_that(
    comparing: Make, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = classifier_checkpoint(tmp_path / "c")
    large = dataclasses.replace(comparing().model, name="org/large", fallbacks=["org/middle", str(tiny_model)])
    assert trained_from(large, [open_checkpoint(directory)]).name == str(tiny_model)
    assert trained_from(comparing().model, [open_checkpoint(directory)]) == comparing().model
    assert trained_from(large, []) is large
    arguments = ["--results", str(tmp_path / "r"), "--checkpoint", str(directory), *_arguments(comparing())]
    for fallbacks, said in (
        ("[]", "model.name: expected tiny-qwen3"),
        (f"[{tiny_model}]", f"does not fit {tiny_model}"),
    ):
        with pytest.raises(SystemExit):
            evaluate_command.main([*arguments, "model.name=org/large", f"model.fallbacks={fallbacks}"])
        assert said in capsys.readouterr().err, "these weights are no adapter's, and are opened last"


def test_variants_to_read() -> None:
    assert describe_weights({}) is None
    assert describe_weights({"alpha": 0.5, "temperature": 1.0, "lambda_distill": 0.3}) == "α=0.5"
    assert describe_weights({"alpha": 1.0, "mse_weight": 0.25, "view_weights": {"b": 2.0, "a": 1}}) == (
        "α=1 mse_weight=0.25 weights=a:1,b:2"
    )
