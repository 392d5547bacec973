"""Does distillation bring a student nearer to its teacher than cross-entropy does, on real conversations?

    python -m tests.benchmarks.bench_conversations --output runs/bench/conversations [--shared ../shared]

The proxy model is fine-tuned, all weights, on the training conversations: that is the teacher. Students are LoRA
adapters of the proxy on the same conversations: one by cross-entropy alone, the others with KL(teacher ‖ student)
beside it, the same steps, batches and seeds. All are compared with the teacher on the test conversations. What is done
is not done again.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

from logitbank.evaluation import evaluate_command
from logitbank.evaluation.report.likelihood_table import likelihood_sentences, likelihood_tables
from logitbank.evaluation.report.markdown import markdown_section
from logitbank.evaluation.report.results import Results
from logitbank.storage.results import Catalogue
from logitbank.student_train import train_command
from logitbank.teacher_cache import build_command
from tests.benchmarks.proxy import SHARED


def run_command(main: Callable[[Sequence[str]], None], *arguments: str) -> None:
    """Run one of our commands; in this process, for its imports take longer than its work here."""
    print(f"== {main.__module__.rpartition('.')[2]} {' '.join(arguments)}", flush=True)
    main(arguments)


def make_teacher(output: Path, settings: Sequence[str], steps: int, batch: int) -> Path:
    """The proxy after some steps with all its weights, on a store whose teacher says nothing that counts."""
    where, teacher = str(output / "examples"), output / "teacher"
    run_command(build_command.main, "--store", where, "--view", "zeroshot", "teacher.top_k=1", *settings)
    places = ["--store", where, "--view", "none", "--output", str(teacher), "--results", str(output / "teacher-log")]
    how = ["training.use_lora=false", "training.learning_rate=1e-3", f"training.max_steps={steps}", "--resume"]
    run_command(train_command.main, *places, *how, f"training.global_batch_size={batch}", *settings)
    return teacher / "final"


def run(got: argparse.Namespace) -> None:
    """Teacher, stores, students, evaluations, table."""
    output, chat = got.output, got.shared / "chat"
    files = [f"chat.{split}={chat / f'{split}.jsonl'}" for split in ("train", "validation", "test")]
    settings = [f"model.name={got.shared / 'models/proxy-qwen3'}", "model.dtype=float32", "tasks=[chat]", *files]
    settings += [f"data.max_student_tokens={got.tokens}", "data.max_validation_per_task=0"]
    settings += [f"data.max_train_per_task={got.train}", f"evaluation.max_samples={got.test}"]
    settings += [
        "evaluation.method=likelihood",
        "training.save_steps=1000",
        "training.warmup_steps=3",
        "training.logging_steps=5",
    ]
    teacher = make_teacher(output, settings, got.teacher_steps, got.batch)
    taught = [f"teacher.model={teacher}", "teacher.top_k=64", *settings]
    store, test, results = str(output / "store"), str(output / "test"), str(output / "results")
    run_command(build_command.main, "--store", store, "--view", "zeroshot", *taught)
    run_command(build_command.main, "--store", test, "--split", "test", "--view", "zeroshot", *taught)
    how = ["training.learning_rate=3e-3", f"training.max_steps={got.steps}", f"training.global_batch_size={got.batch}"]
    for seed in got.seeds:
        for value in (0.0, *got.lambdas):
            student = output / f"lambda-{value:g}-seed-{seed}"
            kd = [f"distillation.lambda_distill={value:g}", "distillation.loss=forward_kl"] if value else []
            places = ["--store", store, "--view", "zeroshot" if value else "none", "--output", str(student), "--resume"]
            run_command(train_command.main, *places, "--results", results, f"seed={seed}", *how, *kd, *settings)
            compared = ["--checkpoint", str(student / "final"), "--store", test, "--results", results]
            run_command(evaluate_command.main, *compared, *settings)
    run_command(evaluate_command.main, "--condition", "base", "--store", test, "--results", results, *settings)
    found = Results.load(Catalogue([results]))
    print("\n".join([*map(markdown_section, likelihood_tables(found)), *likelihood_sentences(found)]))


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="directory for stores, students and results")
    parser.add_argument("--shared", type=Path, default=SHARED, help="holds models/proxy-qwen3 and chat")
    parser.add_argument("--tokens", type=int, default=256, help="longest sequence (default: 256)")
    parser.add_argument("--batch", type=int, default=8, help="sequences of a step (default: 8)")
    parser.add_argument("--teacher-steps", type=int, default=16, help="of the teacher (default: 16)")
    parser.add_argument("--steps", type=int, default=12, help="of each student (default: 12)")
    parser.add_argument("--train", type=int, default=150, help="conversations to learn from (default: 150)")
    parser.add_argument("--test", type=int, default=80, help="conversations to compare on (default: 80)")
    parser.add_argument("--lambdas", type=float, nargs="+", default=[1.0, 4.0], help="of the students (default: 1 4)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1], help="of the students (default: 1)")
    run(parser.parse_args())


if __name__ == "__main__":
    main()
