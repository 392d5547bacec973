"""`evaluate`: what is asked, what is written, what is skipped, what is refused."""

from __future__ import annotations

import dataclasses
import json
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers

from logitbank import progress
from logitbank.configs import Config
from logitbank.evaluation import evaluate_command, query_command
from logitbank.evaluation.checkpoints import Checkpoint, open_checkpoint
from logitbank.evaluation.engines.base import Answer, Request, open_engine
from logitbank.evaluation.run import Evaluation, evaluate, evaluate_all
from logitbank.storage.results.catalogue import Catalogue
from logitbank.tasks import TASKS, DataSettings
from logitbank.tasks.data import load_examples
from logitbank.tasks.prompts import PromptEncoder
from tests.evaluation.conftest import base_overrides, checkpoint, record


class Parrot:
    """An engine that always says the same and remembers what it was asked."""

    context_tokens: int | None = None

    def __init__(self, tokenizer: Any, answer: str = "The answer is: Neutral.") -> None:
        self.tokenizer, self.answer = tokenizer, answer
        self.asked: list[str] = []
        self.limits: list[int] = []

    def generate(self, requests: Sequence[Request], *, progress: Callable[[int], object]) -> list[Answer]:
        self.asked += [self.tokenizer.decode(request.prompt_ids) for request in requests]
        self.limits += [request.max_new_tokens for request in requests]
        progress(len(requests))
        return [Answer(self.answer, cut_short=number % 3 == 0) for number in range(len(requests))]

    def answer_logprobs(self, prompts: Any, answers: Any, *, progress: Callable[[int], object]) -> list[float]:
        raise NotImplementedError

    def __call__(self, config: Config, checkpoint: Checkpoint | None) -> Parrot:
        return self


def _rows(results: Path, sql: str) -> list[dict[str, Any]]:
    return Catalogue([results]).rows(sql)


def test_cells_are_scored_written_and_printed(config: Any, tokenizer: Any, tmp_path: Path, capsys: Any) -> None:
    parrot = Parrot(tokenizer)
    evaluate(Evaluation(config(), "base", None, tmp_path), opener=parrot)
    printed = capsys.readouterr().out
    assert "skipped, no such data: pa/hi" in printed
    assert "[1/5] base nli/en  accuracy" in printed
    assert "base ner/en  f1 0.0  parse failures 100.0%  cut short 33.3%  6 examples" in printed

    mirror = config().data.mirror
    examples = load_examples(
        "nli", "test", "hi", DataSettings(mirror=mirror, sources={"nli": "xnli"}, seed=42), limit=6
    )
    share = sum(example.answer == "neutral" for example in examples) / 6
    (cell,) = _rows(tmp_path, "SELECT * FROM metrics WHERE task='nli' AND language='hi' AND is_primary")
    assert cell["metric"] == "accuracy"
    assert cell["value"] == pytest.approx(share)
    assert cell["examples"] == 6
    rows = _rows(tmp_path, "SELECT * FROM predictions WHERE task='nli' AND language='hi'")
    assert [row["example_id"] for row in rows] == [example.example_id for example in examples]
    for row, example in zip(rows, examples, strict=True):
        assert json.loads(row["parsed"]) == "neutral"
        assert json.loads(row["gold"]) == example.answer
        assert row["output"] == "The answer is: Neutral."
        assert row["score"] == float(example.answer == "neutral")
        assert row["question"] == TASKS["nli"].user_message(example)
    assert all(row["parsed"] is None for row in _rows(tmp_path, "SELECT parsed FROM predictions WHERE task='ner'"))
    (run,) = _rows(tmp_path, "SELECT * FROM runs")
    assert json.loads(run["config"])["evaluation"]["max_samples"] == 6
    assert "transformers" in json.loads(run["versions"])


def test_only_fewshot_shows_demonstrations(config: Any, tokenizer: Any, tmp_path: Path) -> None:
    for condition, turns in (("base", 1), ("fewshot", 6)):
        parrot = Parrot(tokenizer)
        evaluate(Evaluation(config("tasks=[nli]", "languages=[en]"), condition, None, tmp_path), opener=parrot)
        assert {text.count("<start>user") for text in parrot.asked} == {turns}
        asked = _rows(tmp_path, f"SELECT prompt FROM predictions WHERE condition = '{condition}'")
        assert {row["prompt"] for row in asked} == set(parrot.asked), "the rows keep what the model read"
    kept = _rows(
        tmp_path, "SELECT condition, demonstrations AS n, demonstrations_wanted AS m FROM cells ORDER BY condition, m"
    )
    assert {tuple(row.values()) for row in kept} == {("base", 0, 0), ("fewshot", 5, 5)}


def test_finished_cells_are_skipped_and_the_model_stays_closed(
    config: Any, tokenizer: Any, tmp_path: Path, capsys: Any
) -> None:
    first = Parrot(tokenizer)
    evaluate(Evaluation(config("tasks=[nli]"), "base", None, tmp_path), opener=first)
    again = Parrot(tokenizer)
    evaluate(Evaluation(config("tasks=[nli,pa]"), "base", None, tmp_path), opener=again)
    assert "2 of 3 cells are already finished" in capsys.readouterr().out
    assert len(again.asked) == 6, "only pa/en was left"

    def opened(*_: Any) -> Any:
        raise AssertionError("nothing left to do")

    evaluate(Evaluation(config("tasks=[nli,pa]"), "base", None, tmp_path), opener=opened)


def test_an_interrupted_cell_needs_no_second_generation(config: Any, tokenizer: Any, tmp_path: Path) -> None:
    job = Evaluation(config("tasks=[nli]", "languages=[en]"), "base", None, tmp_path)
    evaluate(job, opener=Parrot(tokenizer))
    before = _rows(tmp_path, "SELECT * FROM metrics ORDER BY metric")
    for file in (tmp_path / "metrics").iterdir():
        file.unlink()
    again = Parrot(tokenizer)
    evaluate(job, opener=again)
    assert again.asked == []
    assert _rows(tmp_path, "SELECT * FROM metrics ORDER BY metric") == before


def test_likelihood_picks_the_likeliest_label(config: Any, tmp_path: Path, capsys: Any) -> None:
    job = Evaluation(config("evaluation.method=likelihood", "tasks=[nli,ner]"), "base", None, tmp_path)
    evaluate(job)
    printed = capsys.readouterr().out
    assert "skipped by likelihood because they have no labels: ner" in printed
    assert "base nli/en  likelihood_accuracy" in printed
    engine = open_engine(job.config, None)
    encoder = PromptEncoder(engine.tokenizer)
    task = TASKS["nli"]
    for row in _rows(tmp_path, "SELECT * FROM predictions WHERE language = 'en'"):
        examples = load_examples(
            "nli", "test", "en", DataSettings(mirror=job.config.data.mirror, sources={"nli": "xnli"})
        )
        example = next(found for found in examples if found.example_id == row["example_id"])
        prompt = encoder.encode_prompt(task, example, [], max_tokens=1000)
        assert prompt is not None
        logprobs = {
            label: engine.answer_logprobs([prompt.ids], [encoder.encode_answer(label)], progress=print)[0]
            for label in ("entailment", "neutral", "contradiction")
        }
        assert row["output"] == max(logprobs, key=lambda label: logprobs[label])
    metrics = _rows(tmp_path, "SELECT DISTINCT metric, is_primary, method FROM metrics")
    assert metrics == [{"metric": "likelihood_accuracy", "is_primary": False, "method": "likelihood"}]
    assert _rows(tmp_path, "SELECT * FROM averages") == []
    query_command.main(["--results", str(tmp_path), "tables", "--cells"])
    assert "base: nli (likelihood_accuracy, %)" in capsys.readouterr().out


def test_prompts_that_do_not_fit_are_counted(config: Any, tokenizer: Any, tmp_path: Path, capsys: Any) -> None:
    parrot = Parrot(tokenizer)
    lengths = sorted(len(tokenizer(text)["input_ids"]) for text in _asked(config, tokenizer, tmp_path / "a"))
    small = config("tasks=[nli]", "languages=[en]", f"evaluation.max_prompt_tokens={lengths[2]}")
    evaluate(Evaluation(small, "base", None, tmp_path / "b"), opener=parrot)
    fit = sum(length <= lengths[2] for length in lengths)
    assert len(parrot.asked) == fit < 6
    assert f"dropped {6 - fit} of 6 examples" in capsys.readouterr().out


def test_the_model_s_context_limits_prompt_and_answer_together(config: Any, tokenizer: Any, tmp_path: Path) -> None:
    lengths = sorted(len(tokenizer(text)["input_ids"]) for text in _asked(config, tokenizer, tmp_path / "a"))
    parrot = Parrot(tokenizer)
    parrot.context_tokens = lengths[2] + 9
    small = config("tasks=[nli]", "languages=[en]", "evaluation.max_new_tokens={nli: 9}")
    evaluate(Evaluation(small, "base", None, tmp_path / "b"), opener=parrot)
    assert len(parrot.asked) == sum(length <= lengths[2] for length in lengths) < 6


def test_dropped_demonstrations_stand_in_the_tables(config: Any, tokenizer: Any, tmp_path: Path, capsys: Any) -> None:
    longest = max(len(tokenizer(text)["input_ids"]) for text in _asked(config, tokenizer, tmp_path / "a", "fewshot"))
    small = config("tasks=[nli]", "languages=[en]", f"evaluation.max_prompt_tokens={longest - 1}")
    evaluate(Evaluation(small, "fewshot", None, tmp_path / "b"), opener=Parrot(tokenizer))
    rows = _rows(tmp_path / "b", "SELECT demonstrations, demonstrations_wanted FROM predictions")
    mean = sum(row["demonstrations"] for row in rows) / 6
    assert mean < 5
    assert {row["demonstrations_wanted"] for row in rows} == {5}
    (cell,) = _rows(tmp_path / "b", "SELECT demonstrations, demonstrations_wanted FROM cells WHERE is_primary")
    assert cell == {"demonstrations": pytest.approx(mean), "demonstrations_wanted": 5.0}
    assert f"demonstrations {mean:.2f} of 5" in capsys.readouterr().out


def test_answers_that_hit_the_limit_are_counted(config: Any, tokenizer: Any, tmp_path: Path, capsys: Any) -> None:
    evaluate(Evaluation(config("tasks=[nli]", "languages=[en]"), "base", None, tmp_path), opener=Parrot(tokenizer))
    assert _rows(tmp_path, "SELECT count(*) AS n FROM predictions WHERE cut_short") == [{"n": 2}]
    assert _rows(tmp_path, "SELECT DISTINCT cut_short FROM cells") == [{"cut_short": pytest.approx(2 / 6)}]
    assert _rows(tmp_path, "SELECT cut_short FROM task_averages WHERE is_primary")[0]["cut_short"] == pytest.approx(
        1 / 3
    )
    assert "cut short 33.3%" in capsys.readouterr().out


def test_the_default_limit_fits_the_longest_gold_answer_of_the_split(
    config: Any, tokenizer: Any, tmp_path: Path
) -> None:
    """One byte is one token here: `contradiction` takes 14 with its end of turn, more than the study's 5."""
    for name, overrides in (("all", ()), ("one", ("evaluation.max_samples=1",))):
        parrot = Parrot(tokenizer)
        asked = config("tasks=[nli]", "languages=[en]", *overrides)
        evaluate(Evaluation(asked, "base", None, tmp_path / name), opener=parrot)
        assert set(parrot.limits) == {len("contradiction") + 1}, "of the split, not of the examples drawn"
    parrot = Parrot(tokenizer)
    given = config("tasks=[nli]", "languages=[en]", "evaluation.max_new_tokens={nli: 3}")
    evaluate(Evaluation(given, "base", None, tmp_path / "given"), opener=parrot)
    assert set(parrot.limits) == {3}


def test_short_gold_answers_leave_the_task_s_own_limit(config: Any, tokenizer: Any, tmp_path: Path) -> None:
    parrot = Parrot(tokenizer)
    asked = config("tasks=[ner]", "languages=[en]")
    asked = dataclasses.replace(asked, evaluation=dataclasses.replace(asked.evaluation, max_new_tokens={}))
    evaluate(Evaluation(asked, "base", None, tmp_path), opener=parrot)
    assert set(parrot.limits) == {TASKS["ner"].max_new_tokens}


@pytest.mark.parametrize(("key", "changes"), [("evaluation.sample_seed", True), ("seed", False)])
def test_which_examples_are_drawn_depends_on_the_sample_seed_alone(
    config: Any, tokenizer: Any, tmp_path: Path, key: str, changes: bool
) -> None:
    """Students of several training seeds are compared on the same examples."""
    drawn = {}
    for seed in (1, 2, 3):
        asked = config("tasks=[nli]", "languages=[en]", "evaluation.max_samples=4", f"{key}={seed}")
        evaluate(Evaluation(asked, "base", None, tmp_path / str(seed)), opener=Parrot(tokenizer))
        rows = _rows(tmp_path / str(seed), "SELECT example_id FROM predictions")
        drawn[seed] = tuple(row["example_id"] for row in rows)
    assert len(set(drawn.values())) == (3 if changes else 1)
    expected = load_examples(
        "nli", "test", "en", DataSettings(mirror=config().data.mirror, sources={"nli": "xnli"}, seed=3), limit=4
    )
    if changes:
        assert drawn[3] == tuple(example.example_id for example in expected)


@pytest.mark.parametrize(("key", "changes"), [("evaluation.sample_seed", False), ("seed", True)])
def test_which_demonstrations_are_drawn_depends_on_the_seed_alone(
    config: Any, tokenizer: Any, tmp_path: Path, key: str, changes: bool
) -> None:
    prompts = {}
    for seed in (1, 2):
        asked = config("tasks=[nli]", "languages=[en]", "evaluation.max_samples=12", f"{key}={seed}")
        evaluate(Evaluation(asked, "fewshot", None, tmp_path / str(seed)), opener=Parrot(tokenizer))
        rows = _rows(tmp_path / str(seed), "SELECT example_id, prompt FROM predictions")
        prompts[seed] = {row["example_id"]: row["prompt"] for row in rows}
    assert prompts[1].keys() == prompts[2].keys(), "all twelve of the split"
    assert (prompts[1] != prompts[2]) == changes


def _asked(config: Any, tokenizer: Any, results: Path, condition: str = "base") -> list[str]:
    parrot = Parrot(tokenizer)
    evaluate(Evaluation(config("tasks=[nli]", "languages=[en]"), condition, None, results), opener=parrot)
    return parrot.asked


def test_a_checkpoint_brings_its_seed_step_and_variant(config: Any, tokenizer: Any, tmp_path: Path) -> None:
    distillation = {"lambda_distill": 0.05, "strategy": "fixed", "loss": "mse", "n_top_logits": None}
    settings = {"distillation": distillation, "training": {"max_steps": 80}}
    path = checkpoint(tmp_path / "out" / "final", run="r1", step=60, seed=7, view="fewshot", config=settings)
    job = Evaluation(config("tasks=[nli]", "languages=[en]"), "distilled", open_checkpoint(path), tmp_path / "res")
    evaluate(job, opener=Parrot(tokenizer))
    (run,) = _rows(tmp_path / "res", "SELECT * FROM runs")
    assert (run["seed"], run["step"], run["variant"], run["training_run"]) == (7, 60, "λ=0.05", "r1")
    assert run["lambda_distill"] == 0.05
    assert (run["max_steps"], run["teacher"], run["top_k"]) == (80, "org/teacher", 256)
    (cell,) = _rows(tmp_path / "res", "SELECT * FROM cells WHERE is_primary")
    assert cell["taught_by"] == "teacher fewshot K=256 b1b1b1"
    assert (cell["step"], cell["max_steps"]) == (60, 80)


def test_a_student_of_another_teacher_is_distilled_under_any_view(
    tiny_model: Path, mirror: Path, tmp_path: Path, capsys: Any
) -> None:
    """By name, by default, and by the name that an earlier version gave it; two teachers are two series."""
    results, command = tmp_path / "r", [*base_overrides(tiny_model, mirror), "tasks=[nli]", "languages=[en]"]
    taught = {"a": ("zeroshot", "runs/a/final"), "b": ("zeroshot", "runs/b/final"), "c": ("context", str(tiny_model))}
    for name, (view, teacher) in taught.items():
        base = transformers.AutoModelForCausalLM.from_pretrained(tiny_model)
        peft.get_peft_model(base, peft.LoraConfig(r=2, target_modules=["q_proj"])).save_pretrained(tmp_path / name)
        about = {"model": str(tiny_model), "view": view, "teacher": teacher, "view_fingerprint": name * 8}
        earlier = {"condition": "control"} if name == "a" else {}
        (tmp_path / name / "training.json").write_text(json.dumps(record(**about, **earlier)))
    command += ["--results", str(results)]
    evaluate_command.main([*command, "--checkpoint", str(tmp_path / "a")])
    for name in "bc":
        evaluate_command.main([*command, "--condition", "distilled", "--checkpoint", str(tmp_path / name)])
    found = _rows(results, "SELECT condition, taught_by FROM cells WHERE is_primary ORDER BY taught_by")
    assert [tuple(row.values()) for row in found] == [
        ("distilled", "a/final zeroshot K=256 aaaaaa"),
        ("distilled", "b/final zeroshot K=256 bbbbbb"),
        ("distilled", "tiny-qwen3 context K=256 cccccc"),
    ]
    capsys.readouterr()
    query_command.main(["--results", str(results), "tables"])
    header = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("| model"))
    assert "distilled (a/final zeroshot aaaaaa) | distilled (b/final zeroshot bbbbbb) | distilled (tiny" in header
    evaluate_command.main([*command, "--condition", "control", "--checkpoint", str(tmp_path / "a")])
    assert _rows(results, "SELECT count(*) AS n FROM cells WHERE is_primary AND condition = 'control'") == [{"n": 1}]


COMMAND_ERRORS = {
    "no checkpoint directory": (["--condition", "finetuned", "--checkpoint", "{tmp}/none"], "no directory"),
    "no model in it": (
        ["--condition", "finetuned", "--checkpoint", "{tmp}/out"],
        "it holds checkpoint-5, final: give one",
    ),
    "base with checkpoint": (["--condition", "base", "--checkpoint", "{tmp}/out/final"], "takes no --checkpoint"),
    "trained without checkpoint": (["--condition", "distilled"], "add --checkpoint DIR"),
    "wrong view": (
        ["--condition", "control", "--checkpoint", "{tmp}/out/final"],
        "use distilled, or a name of your own with --new-condition",
    ),
    "bad name": (["--condition", "my/name"], "--condition: expected letters"),
    "misspelt name": (["--condition", "distiled"], "got 'distiled'; did you mean distilled? add --new-condition"),
    "unknown name": (["--condition", "x"], "expected one of base, fewshot, finetuned, distilled, control, shuffled"),
    "no name": ([], "--condition: expected a name, got none; use base or fewshot, or add --checkpoint DIR"),
    "no name, no record": (
        ["--checkpoint", "{tmp}/out/checkpoint-5"],
        "checkpoint-5 has no training.json that names it",
    ),
    "another teacher": (
        ["--condition", "control", "--checkpoint", "{tmp}/taught"],
        "was trained with view zeroshot of org/big, which is distilled, got control; use distilled",
    ),
    "no demonstrations": (
        ["--condition", "fewshot", "fewshot.num_demonstrations={{pa: 0}}"],
        "fewshot.num_demonstrations.pa: expected at least 1 with --condition fewshot, got 0",
    ),
    "another template": (
        ["--condition", "distilled", "--checkpoint", "{tmp}/whole"],
        "whole was trained with chat template another-temp",
    ),
    "steps alone": (["--condition", "base", "--steps", "3"], "--steps: needs --checkpoint"),
    "no such step": (["--condition", "distilled", "--checkpoint", "{tmp}/out", "--steps", "9"], "its steps are 5"),
    "no labels": (["--condition", "base", "tasks=[ner]", "evaluation.method=likelihood"], "labels are nli, pa"),
    "impossible cell": (["--condition", "base", "tasks=[pa]", "languages=[hi]"], "pa does not exist in hi"),
    "unknown key": (["--condition", "base", "evaluation.max_sample=3"], "did you mean evaluation.max_samples"),
    "no such model": (["--condition", "base", "model.name={tmp}/nowhere"], "no directory"),
    "no model there": (["--condition", "base", "model.name={tmp}"], "no config.json or tokenizer in it"),
    "no such mirror": (["--condition", "base", "data.mirror={tmp}/nowhere"], "data.mirror: no directory"),
    "another model": (
        ["--condition", "distilled", "--checkpoint", "{tmp}/out/final", "model.name={tmp}/other"],
        "model.name: expected m, from which",
    ),
}


@pytest.mark.parametrize("case", COMMAND_ERRORS)
def test_wrong_input_is_one_line_and_exit_code_2(
    case: str, tiny_model: Path, mirror: Path, tmp_path: Path, capsys: Any
) -> None:
    checkpoint(tmp_path / "out" / "final", view="fewshot", model="m")
    checkpoint(tmp_path / "out" / "checkpoint-5", record=False)
    checkpoint(tmp_path / "taught", view="zeroshot", model="org/small", teacher="org/big")
    shutil.copytree(tiny_model, tmp_path / "whole")
    about = record(view="fewshot", model=str(tiny_model), template="another-template")
    (tmp_path / "whole" / "training.json").write_text(json.dumps(about))
    arguments, message = COMMAND_ERRORS[case]
    given = [argument.format(tmp=tmp_path) for argument in arguments]
    command = [*base_overrides(tiny_model, mirror), "--results", str(tmp_path / "r"), *given]
    with pytest.raises(SystemExit) as caught:
        evaluate_command.main(command)
    assert caught.value.code == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("error: ")
    assert "\n" not in error
    assert message in error
    assert not (tmp_path / "r").exists(), "a run of which there is nothing"


def test_the_command_with_a_real_model(tiny_model: Path, mirror: Path, tmp_path: Path, capsys: Any) -> None:
    command = [*base_overrides(tiny_model, mirror), "tasks=[nli]", "--results", str(tmp_path)]
    evaluate_command.main([*command, "--condition", "base"])
    evaluate_command.main([*command, "--condition", "base"])
    assert "2 of 2 cells are already finished" in capsys.readouterr().out
    rows = _rows(tmp_path, "SELECT output FROM predictions")
    assert len(rows) == 12
    assert any(row["output"] for row in rows)


class Slow(Parrot):
    """A parrot that takes its time for each answer."""

    def generate(self, requests: Sequence[Request], *, progress: Callable[[int], object]) -> list[Answer]:
        for _ in requests:
            time.sleep(0.02)
            progress(1)
        return [Answer(self.answer, cut_short=False) for _ in requests]


def test_progress_is_over_all_cells_and_checkpoints_of_a_command(
    config: Any, tokenizer: Any, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0.05)
    asked = config("tasks=[nli]", "languages=[en,hi]")
    evaluate(Evaluation(config("tasks=[nli]", "languages=[en]"), "base", None, tmp_path), opener=Parrot(tokenizer))
    capsys.readouterr()
    path = checkpoint(tmp_path / "c", view="fewshot")
    jobs = [Evaluation(asked, "base", None, tmp_path)]
    jobs += [Evaluation(asked, "distilled", open_checkpoint(path), tmp_path)]
    evaluate_all(jobs, opener=Slow(tokenizer))
    lines = capsys.readouterr().err.splitlines()
    assert lines
    assert all(line.startswith("base, distilled: ") and " of 18 answers" in line for line in lines), lines
    done = [int(line.split(": ")[1].split(" of")[0]) for line in lines]
    assert done == sorted(done)
    assert max(done) > 6, "one bar, not one for each cell"


def test_engine_choice_is_checked_in_the_configuration(config: Any) -> None:
    assert open_engine(config(), None).context_tokens == 1024


def test_several_checkpoints_in_one_call(tiny_model: Path, mirror: Path, tmp_path: Path, capsys: Any) -> None:
    for step, name in ((5, "checkpoint-5"), (10, "final")):  # training writes its last step as `final`
        torch.manual_seed(step)
        base = transformers.AutoModelForCausalLM.from_pretrained(tiny_model)
        lora = peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
        peft.get_peft_model(base, lora).save_pretrained(tmp_path / "out" / name)
        about = record(model=str(tiny_model), view="fewshot", step=step)
        (tmp_path / "out" / name / "training.json").write_text(json.dumps(about))
    command = [*base_overrides(tiny_model, mirror), "tasks=[nli]", "languages=[en]", "--new-condition"]
    command += ["--results", str(tmp_path / "r"), "--condition", "mine", "--checkpoint", str(tmp_path / "out")]
    evaluate_command.main([*command, "--steps", "5", "10"])
    evaluate_command.main([*command, "--steps", "10"])
    assert "1 of 1 cells are already finished" in capsys.readouterr().out
    rows = _rows(tmp_path / "r", "SELECT DISTINCT step, condition FROM metrics ORDER BY step")
    assert rows == [{"step": 5, "condition": "mine"}, {"step": 10, "condition": "mine"}]
    assert _rows(tmp_path / "r", "SELECT DISTINCT step FROM final_scores") == [{"step": 10}]
    curve = _rows(tmp_path / "r", "SELECT step FROM checkpoint_curves ORDER BY step")
    assert [row["step"] for row in curve] == [5, 10], "one series"
