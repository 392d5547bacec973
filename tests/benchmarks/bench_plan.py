"""Planning in bounded memory: a build's plan, its store's base, and what workers and students open of it.

    python -m tests.benchmarks.bench_plan [--tokens 100000000] [--answer 1000] [--limit-gib 2] [--view fewshot zeroshot]

Writes rows with answers of random letters, of which each is a token, to a temporary directory. Then three processes
run, each under a limit on its data segment that the system enforces (RLIMIT_DATA; peak resident memory is printed
beside it, libraries included): one plans the store under each view and writes its base, one finds that plan and renders
the prompts of a few shards, and one opens the store as a student does. The teacher is made of random numbers and is
asked for the vocabulary alone. The tokenizer looks bytes up in a table: what a real one takes comes on top, once for
the plan and once for the shards.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import re
import resource
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from transformers.convert_slow_tokenizer import bytes_to_unicode

ROWS = 300
TOP_K = 64
TASK = """
from logitbank.tasks import Example, Source, Task


class Recall(Task):
    name = "recall"
    system_prompt = "Recall what was said."
    languages = ("en",)
    sources = {"recall": Source.of_files("{split}.jsonl", languages=("en",))}
    num_demonstrations = 2
    max_new_tokens = 16
    primary_metric = "parse_failure"
    labels = ()
    max_student_tokens = 8192
    max_teacher_tokens = 8192

    def to_example(self, row, language, example_id):
        return Example(example_id, self.name, language, {"question": row["question"]}, row["answer"])

    def user_message(self, example):
        return example.fields["question"]

    def reference(self, example):
        return example.answer

    def parse(self, output):
        return output

    def statistics(self, output, reference, language, protocol=None):
        return {"parse_failure": 0.0}

    def metrics(self, means):
        return dict(means)
"""


class RandomTeacher:
    """Rows of random logits."""

    vocab_size = ROWS
    batches_itself = False

    def __init__(self, reuses_prefixes: bool) -> None:
        self.reuses_prefixes = reuses_prefixes

    def identity(self) -> Mapping[str, Any]:
        return {"model": "random", "prefix_reuse": self.reuses_prefixes}

    def score_batches(self, batches: Iterable[Sequence[Any]], top_k: int) -> Iterator[Any]:
        return (self._rows(batch, top_k) for batch in batches)

    def _rows(self, batch: Sequence[Any], top_k: int) -> Any:
        from logitbank.storage import TeacherRows

        gold = np.concatenate([item.sequence.answer_ids for item in batch])
        logits = np.sort(np.random.default_rng(len(gold)).normal(0, 2, (len(gold), top_k)).astype(np.float32))[:, ::-1]
        ids = np.tile(np.arange(top_k, dtype=np.int32), (len(gold), 1))
        total = np.full(len(gold), 12.0, np.float32)
        rank = np.where(gold < top_k, gold, top_k).astype(np.int32)
        shown = np.where(gold < top_k, logits[np.arange(len(gold)), np.minimum(gold, top_k - 1)], logits[:, -1] - 1)
        entropy = np.full(len(gold), 6.0, np.float32)
        return TeacherRows(ids, np.ascontiguousarray(logits), total, entropy, shown.astype(np.float32), rank)


def looking_up(tokenizer: Any) -> Any:
    """A tokenizer of bytes that gives the same ids in a hundredth of the time."""
    ids = np.array([tokenizer.convert_tokens_to_ids(bytes_to_unicode()[byte]) for byte in range(256)])
    special = re.compile("(<[^>]*>)")

    class LookingUp(type(tokenizer)):  # type: ignore[misc]
        def __call__(self, text: str, **options: Any) -> Any:
            if options.get("split_special_tokens") or set(options) - {"add_special_tokens"}:
                return super().__call__(text, **options)
            parts = [
                [self.convert_tokens_to_ids(part)]
                if part.startswith("<")
                else ids[np.frombuffer(part.encode(), np.uint8)].tolist()
                for part in special.split(text)
                if part
            ]
            return {"input_ids": [number for part in parts for number in part]}

    sample = "<|im_start|>user\nWhat is number 7?<|im_end|>\n"
    expected = tokenizer(sample, add_special_tokens=False)["input_ids"]
    tokenizer.__class__ = LookingUp
    assert tokenizer(sample, add_special_tokens=False)["input_ids"] == expected
    return tokenizer


def write_rows(folder: Path, tokens: int, answer: int) -> int:
    """Rows whose answers have so many letters together, `answer` on average; how many rows."""
    rng = np.random.default_rng(0)
    # Uniform from half to one and a half times the mean; the end of turn is a token too.
    lengths = rng.integers(answer // 2, answer + answer // 2, tokens // answer)
    with (folder / "train.jsonl").open("w") as file:
        for number, length in enumerate(lengths.tolist()):
            answer_text = rng.integers(ord("a"), ord("z") + 1, length - 1, dtype=np.uint8).tobytes().decode()
            file.write(json.dumps({"question": f"What is number {number}?", "answer": answer_text}) + "\n")
    (folder / "recall.py").write_text(TASK)
    return len(lengths)


def settings(folder: Path) -> list[str]:
    """Overrides of a configuration for the rows."""
    return [
        *(f"model.name={folder / 'model'}", f"tasks=[{folder}/recall.py:Recall]", "languages=[en]"),
        *("data.max_validation_per_task=0", "store.shard_tokens=65536", f"teacher.top_k={TOP_K}"),
        *("data.max_student_tokens=8192", "data.max_teacher_tokens=8192"),
        "data.max_train_per_task=1000000000",
    ]


@contextlib.contextmanager
def session(folder: Path, store: str, view: str, reuses: bool) -> Iterator[Any]:
    from logitbank.configs import load_config
    from logitbank.teacher_cache import pairing
    from logitbank.teacher_cache.preparation import prepare
    from logitbank.teacher_cache.session import begin

    opened_by = pairing.load_tokenizer
    pairing.load_tokenizer = lambda model: looking_up(opened_by(model))
    config = load_config([], settings(folder))
    with (
        prepare(config, [view]) as prepared,
        begin(
            store, config, prepared.questions, lambda longest: RandomTeacher(reuses), finds_prefixes=reuses
        ) as opened,
    ):
        yield opened


def plan(folder: Path, view: str, reuses: bool) -> int:
    """Plan a store and write its base; its answer tokens."""
    with session(folder, f"{folder}/{view}", view, reuses) as opened:
        return int(opened._plan.examples.answer_tokens)


def find(folder: Path, view: str, reuses: bool) -> int:
    """Open the planned store as a worker does and render the prompts of four shards; answer tokens rendered."""
    with session(folder, f"{folder}/{view}", view, reuses) as opened:
        work = opened.missing()[:4]
        return sum(it.sequence.answer_length for w in work for it in opened._sequences(w.view, w.shard))


def study(folder: Path, view: str, reuses: bool) -> int:
    """Open the store as a student does and draw the first thousand steps; its answer tokens."""
    from logitbank.configs import load_config
    from logitbank.storage import TeacherStore
    from logitbank.student_train.order import conversation_tokens, example_order

    store = TeacherStore.open(f"{folder}/{view}")
    order = example_order(store, load_config([], settings(folder)))
    conversation_tokens(store.examples)
    for step in range(1000):
        for example in order.step(step, 8):
            assert len(store.examples.sequence(example).ids) > 0
    return int(store.info.answer_tokens)


def limited(work: Callable[[Path, str, bool], int], folder: Path, view: str, reuses: bool, gib: float) -> None:
    """Run work in a process of its own that the system gives so much memory; print what it took."""
    receiver, sender = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("spawn").Process(
        target=_under_limit, args=(sender, work, folder, view, reuses, gib)
    )
    process.start()
    sender.close()
    try:
        tokens, processor, clock, peak, data = receiver.recv()
    except EOFError:
        raise SystemExit(f"{view}, {work.__name__}: ended without a result; more than {gib:g} GiB?") from None
    process.join()
    print(
        f"{view}, {work.__name__}: {tokens:,} answer tokens under {gib:g} GiB, {processor:,.0f} s of processor, "
        f"{clock:,.0f} s; {1e6 * processor / tokens:.2f} s of processor per million; peak resident {peak:.2f} GiB, "
        f"of it {data:.2f} GiB when the work began",
        flush=True,
    )


def _under_limit(
    sender: Any, work: Callable[[Path, str, bool], int], folder: Path, view: str, reuses: bool, gib: float
) -> None:

    resource.setrlimit(resource.RLIMIT_DATA, (int(gib * 2**30),) * 2)
    before = _peak_gib()
    processor, clock = time.process_time(), time.perf_counter()
    tokens = work(folder, view, reuses)
    took = time.process_time() - processor, time.perf_counter() - clock
    sender.send((tokens, *took, _peak_gib(), before))


def _peak_gib() -> float:
    """The most that was resident since this program began; `getrusage` counts what its parent had too."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 2**20


def main() -> None:
    """Write the rows, then plan, find and open under each view."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=10**8)
    parser.add_argument("--answer", type=int, default=1000, help="tokens of an answer, on average")
    parser.add_argument("--limit-gib", type=float, default=2.0)
    parser.add_argument("--view", nargs="+", default=["zeroshot", "fewshot"])
    parser.add_argument("--prefixes", action="store_true", help="look for prompts that begin alike, as hf engines do")
    got = parser.parse_args()
    from tests import tiny
    from tests.teacher_cache.conftest import CHATML

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tiny.save_model(folder / "model", tiny.byte_tokenizer(CHATML), rows=ROWS, max_position_embeddings=8192)
        rows = write_rows(folder, got.tokens, got.answer)
        size = (folder / "train.jsonl").stat().st_size
        print(f"{rows:,} rows, {size / 1e6:,.0f} MB of JSON", flush=True)
        for view in got.view:
            for work in (plan, find, study):
                limited(work, folder, view, got.prefixes, got.limit_gib)


if __name__ == "__main__":
    main()
