"""Does distillation bring a student nearer to its teacher than cross-entropy does, on real conversations?

    python -m tests.benchmarks.bench_conversations --output runs/bench/conversations [--shared ../shared]

The proxy model is fine-tuned, all weights, on the training conversations: that is the teacher. Students are LoRA
adapters of the proxy on the same conversations: one by cross-entropy alone, the others with KL(teacher ‖ student)
beside it, the same steps, batches and seeds. All are compared with the teacher on the test conversations. What is done
is not done again.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import logitbank
from logitbank.evaluation.report.likelihood_table import likelihood_sentences, likelihood_tables
from logitbank.evaluation.report.markdown import markdown_section
from logitbank.evaluation.report.results import Results
from logitbank.storage.results import Catalogue
from tests.benchmarks.proxy import SHARED


def make_teacher(output: Path, settings: Sequence[str], steps: int, batch: int) -> Path:
    """The proxy after some steps with all its weights, on a store whose teacher says nothing that counts."""
    examples, teacher = output / "examples", output / "teacher"
    logitbank.build(["teacher.top_k=1", *settings], store=examples, views=["zeroshot"])
    how = ["training.use_lora=false", "training.learning_rate=1e-3", f"training.max_steps={steps}"]
    config = [*how, f"training.global_batch_size={batch}", *settings]
    return logitbank.train(config, store=examples, view=None, output=teacher, results=output / "teacher-log")


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
    store, test, results = output / "store", output / "test", output / "results"
    logitbank.build(taught, store=store, views=["zeroshot"])
    logitbank.build(taught, store=test, views=["zeroshot"], split="test")
    how = ["training.learning_rate=3e-3", f"training.max_steps={got.steps}", f"training.global_batch_size={got.batch}"]
    for seed in got.seeds:
        for value in (0.0, *got.lambdas):
            student = output / f"lambda-{value:g}-seed-{seed}"
            print(f"== {student.name}", flush=True)
            kd = [f"distillation.lambda_distill={value:g}", "distillation.loss=forward_kl"] if value else []
            config = [f"seed={seed}", *how, *kd, *settings]
            view = "zeroshot" if value else None
            final = logitbank.train(config, store=store, view=view, output=student, results=results)
            logitbank.evaluate(settings, checkpoint=final, store=test, results=results)
    logitbank.evaluate(settings, condition="base", store=test, results=results)
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
