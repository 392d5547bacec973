"""The real rows: baselines, and the proxy model's whole study, in one table.

    python -m tests.benchmarks.bench_preference --output runs/bench/preference [--shared ../shared]

1,238 training comparisons after merging, 600 of the test split. The study is `logitbank study preference`: teachers and
students of five folds from the proxy model, both orders of the answers, temperatures of the folds that students left
out; what is finished is not done again. The settings were chosen by out-of-fold log loss on the training rows.
Baselines of scikit-learn train on the same rows; their settings were chosen on the validation rows. Gains are those
over the class shares of the training rows; intervals resample prompts.

Shape letters: N comparisons, C classes.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from scipy import sparse
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression

from logitbank.configs import data_settings
from logitbank.preference import Pair
from logitbank.scripts.preference import run
from logitbank.scripts.preference_plan import Plan, Teacher
from logitbank.tasks.preference import load_pairs, prepare
from tests.benchmarks.class_probabilities import Floats, interval, log_losses, read_test
from tests.benchmarks.proxy import SHARED

SETTINGS = (
    "model.dtype=float32",
    "data.max_student_tokens=1024",
    "data.swap=all",
    "distillation.alpha=0.5",
    "distillation.temperature=1",
    "lora.target_modules=[layers.4.mlp.down_proj]",
    "lora.r=8",
    "training.max_steps=150",
    "training.warmup_steps=10",
    "training.learning_rate=5e-3",
    "training.global_batch_size=16",
    "training.micro_batch_size=4",
    "training.label_smoothing=0.1",
    "training.eval_steps=null",
    "training.patience=null",
    "training.precision=fp32",
    "training.save_steps=150",
    "training.num_workers=0",
)


TEACHER = "model: {name: MODEL}\n"  # the same model: what it adds is what it learned from the other folds


def plan_of(output: Path, shared: Path) -> Plan:
    """The study of the real rows."""
    files = [f"preference.{name}={shared / 'preference' / f'{name}.csv'}" for name in ("train", "validation", "test")]
    model = str(shared / "models/proxy-qwen3")
    overrides = (f"model.name={model}", *files, *SETTINGS)
    output.mkdir(parents=True, exist_ok=True)
    file = output / "teacher.yaml"
    file.write_text(TEACHER.replace("MODEL", model), encoding="utf-8")
    teacher = Teacher("proxy", files=(str(file),))
    return Plan(output, (teacher,), ("preference",), overrides, calibrate_on="folds")


def class_shares(train: Sequence[Pair], test: Sequence[Pair]) -> Floats:
    """(N,3), the same for every comparison."""
    return np.tile(np.array([pair.target for pair in train]).mean(axis=0), (len(test), 1))


def tf_idf(train: Sequence[Pair], test: Sequence[Pair]) -> Floats:
    """(N,3) of a logistic regression on the difference of both answers' TF-IDF, and its absolute value."""
    words = TfidfVectorizer(sublinear_tf=True, min_df=2, ngram_range=(1, 2), max_features=50_000)
    words.fit([text for pair in train for text in answers_of(pair)])

    def features(pairs: Sequence[Pair]) -> sparse.csr_matrix:
        a, b = (words.transform([answers_of(pair)[side] for pair in pairs]) for side in (0, 1))
        return sparse.hstack([a - b, abs(a - b)]).tocsr()

    model = LogisticRegression(C=1.0, max_iter=2000).fit(features(train), likeliest(train))
    return np.asarray(model.predict_proba(features(test)))


def lengths(train: Sequence[Pair], test: Sequence[Pair]) -> Floats:
    """(N,3) of boosted trees on characters, words and lines of both answers."""

    def features(pairs: Sequence[Pair]) -> Floats:
        return np.array([row(pair) for pair in pairs])

    def row(pair: Pair) -> list[float]:
        a, b = ([len(text), len(text.split()), text.count("\n")] for text in answers_of(pair))
        both = list(zip(a, b, strict=True))
        differences = [x - y for x, y in both] + [math.log((x + 1) / (y + 1)) for x, y in both]
        return [len("\n".join(pair.prompt)), *a, *b, *differences]

    model = HistGradientBoostingClassifier(
        learning_rate=0.02, max_iter=50, max_leaf_nodes=8, l2_regularization=1.0, random_state=0
    )
    return np.asarray(model.fit(features(train), likeliest(train)).predict_proba(features(test)))


def answers_of(pair: Pair) -> tuple[str, str]:
    """The texts of both answers."""
    return "\n".join(pair.response_a), "\n".join(pair.response_b)


def likeliest(pairs: Sequence[Pair]) -> list[int]:
    """The class of each comparison; of a soft target its likeliest."""
    return [int(np.argmax(pair.target)) for pair in pairs if pair.target is not None]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, metavar="DIR")
    parser.add_argument("--shared", type=Path, default=SHARED)
    parser.add_argument("--baselines", action="store_true", help="these alone: minutes instead of an hour")
    got = parser.parse_args()
    plan = plan_of(got.output, got.shared)
    data = data_settings(plan.config)
    train, test = prepare(data).train, load_pairs("test", data)
    rows = {
        "class shares of train": class_shares(train, test),
        "TF-IDF, logistic regression": tf_idf(train, test),
        "lengths, boosted trees": lengths(train, test),
    }
    targets_NC = np.array([pair.target for pair in test])
    clusters_N = np.array([f"{pair.prompt_key:016x}" for pair in test])
    if not got.baselines:
        run(plan)
        found = read_test(Path(plan.results))
        place = {example_id: index for index, example_id in enumerate(found.example_ids)}
        order = [place[pair.example_id] for pair in test]
        for (condition, kind), value in sorted(found.probabilities.items()):
            rows[f"{condition}, {'calibrated' if kind == 'p' else 'before its temperature'}"] = value[order]
    print_table(rows, targets_NC, clusters_N)


def print_table(rows: dict[str, Floats], targets_NC: Floats, clusters_N: np.ndarray) -> None:
    """Markdown: log loss, accuracy, gain over the first row."""
    shares_N = log_losses(next(iter(rows.values())), targets_NC)
    print("\n| | log loss | accuracy | gain over class shares |\n|---|---:|---:|---:|")
    for name, probabilities_NC in rows.items():
        losses_N = log_losses(probabilities_NC, targets_NC)
        accuracy = targets_NC[np.arange(len(losses_N)), probabilities_NC.argmax(axis=1)].mean()
        low, high = interval(shares_N - losses_N, clusters_N)
        gain = f"{(shares_N - losses_N).mean():+.4f} [{low:+.4f}, {high:+.4f}]"
        print(f"| {name} | {losses_N.mean():.4f} | {100 * accuracy:.1f}% | {gain} |")
    pairs = [("finetuned", "distilled")] if "distilled, calibrated" in rows else []
    for first, second in pairs:
        for kind in ("calibrated", "before its temperature"):
            gains_N = log_losses(rows[f"{first}, {kind}"], targets_NC) - log_losses(
                rows[f"{second}, {kind}"], targets_NC
            )
            low, high = interval(gains_N, clusters_N)
            print(f"| {second} over {first}, {kind} | | | {gains_N.mean():+.4f} [{low:+.4f}, {high:+.4f}] |")


if __name__ == "__main__":
    main()
