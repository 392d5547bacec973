"""How far each kind of teacher signal turns a student's gradient away from the full distribution's, and its bytes.

The teacher is a model with few-shot prompts, the student the same model with zero-shot prompts: once with the same
weights, where only the demonstrations are missing, and once with noise on every weight matrix, a student far from its
teacher. The angle is between gradients of the loss of all answer tokens with respect to all parameters; the reference
is the forward KL over all rows of the `lm_head`. Bytes are those of whole stores, zero-shot view, default encoding.
"""

from __future__ import annotations

import argparse
import copy
import math
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from logitbank.configs import Config, load_config
from logitbank.configs.schema import DistillationConfig
from logitbank.models.huggingface import load_causal_lm, load_tokenizer
from logitbank.storage import StoreSpec, TeacherRows, Vocabulary, concatenate, open_builder
from logitbank.storage.objects import open_objects
from logitbank.student_train.batch import sample_weights
from logitbank.student_train.losses.answer_logits import read_logits
from logitbank.student_train.losses.base import TeacherLogits, make_loss
from logitbank.tasks.prompts import PromptEncoder
from logitbank.teacher_cache.sampling import Sampling, add_samples
from logitbank.teacher_cache.signal import signal
from logitbank.uniforms import uniforms
from tests.benchmarks.proxy import SHARED, proxy_settings
from tests.plans import Gathered, gather

FORWARD_KL = DistillationConfig(loss="forward_kl")
PILOT_TOKENS = 2048


@dataclass(frozen=True)
class Kind:
    """One kind of signal: K ranks, M draws, and whether the loss knows the mass outside the K."""

    top_k: int
    draws: int = 0
    signal: str = "topk"
    tail: bool = True

    def __str__(self) -> str:
        if self.signal == "sampled":
            return f"sampled, {self.draws} draws"
        if self.signal == "hybrid":
            return f"hybrid, top {self.top_k} and {self.draws} draws"
        return f"top {self.top_k}, {'tail as one outcome' if self.tail else 'without tail'}"

    def rows(self, logits_TV: torch.Tensor, gold_T: torch.Tensor, numbers: np.ndarray, size: int) -> TeacherRows:
        """What a store of this kind holds of (T, V) teacher logits."""
        rows = signal(logits_TV, gold_T, self.top_k, size)
        if not self.draws:
            return rows
        return add_samples(rows, logits_TV, Sampling(self.draws, self.signal == "hybrid", numbers), size)


KINDS = [
    *(Kind(top_k, tail=tail) for top_k in (12, 64, 256) for tail in (False, True)),
    *(Kind(1, draws, "sampled") for draws in (12, 50, 64)),
    *(Kind(12, draws, "hybrid") for draws in (12, 50)),
]


class Prompts:
    """Logits at the answer positions of single examples."""

    def __init__(self, plan: Gathered, size: int) -> None:
        self.plan, self.size = plan, size

    def logits(self, model: Any, view: str, example: int) -> torch.Tensor:
        """(A, V) float32."""
        sequence = self.plan.views[view].sequences[example]
        ids = torch.from_numpy(sequence.ids[:-1].astype(np.int64))[None]
        logits: torch.Tensor = model(input_ids=ids, logits_to_keep=sequence.answer_length, use_cache=False).logits[0]
        return logits.float()

    def gold(self, example: int) -> torch.Tensor:
        return torch.tensor(self.plan.examples[example].answer_ids)

    def numbers(self, example: int) -> np.ndarray:
        record = self.plan.examples[example]
        return uniforms(0, record.example_id, len(record.answer_ids))


def dense_loss(student_TV: torch.Tensor, teacher_TV: torch.Tensor) -> torch.Tensor:
    """Sum over tokens of KL(teacher ‖ student) over all rows of the `lm_head`."""
    target_TV = teacher_TV.log_softmax(-1)
    return (target_TV.exp() * (target_TV - student_TV.log_softmax(-1))).sum()


def signal_loss(kind: Kind, rows: TeacherRows, student_TV: torch.Tensor) -> torch.Tensor:
    """The same from what is stored, with the loss that training uses."""
    ids_TC = torch.from_numpy(np.concatenate([rows.token_ids, rows.sample_ids], axis=1).astype(np.int64))
    student = read_logits(student_TV, ids_TC[:, 0], ids_TC, with_rest=kind.signal == "topk")
    if not kind.tail:  # the K probabilities alone, made to add up to 1
        target_TK = torch.from_numpy(rows.logits).softmax(-1)
        return -(target_TK * (student.top_TK - student.logsumexp_T[:, None])).sum()
    weight_TC = torch.from_numpy(sample_weights(rows, kind.signal)).float() if kind.draws else None
    arrays = (rows.logits, rows.logsumexp, rows.entropy, rows.gold_logit, rows.gold_rank, rows.log_tail)
    teacher = replace(TeacherLogits(*map(torch.from_numpy, arrays)), weight_TC=weight_TC)
    return make_loss(FORWARD_KL, student_TV.shape[1], kind.signal)(student, teacher).sum()


def angles(prompts: Prompts, teacher: Any, student: Any) -> tuple[float, dict[Kind, float], dict[Kind, float]]:
    """Mean KL per answer token, each kind's angle in degrees, and how many distinct tokens it keeps on average."""
    parameters = [p for p in student.parameters() if p.requires_grad]
    sums = {kind: [torch.zeros_like(p) for p in parameters] for kind in [None, *KINDS]}
    kept = dict.fromkeys(KINDS, 0)
    kl, tokens = 0.0, 0
    for example in range(len(prompts.plan.examples)):
        with torch.no_grad():
            teacher_TV = prompts.logits(teacher, "fewshot", example)
        student_TV = prompts.logits(student, "zeroshot", example)
        losses: dict[Kind | None, torch.Tensor] = {None: dense_loss(student_TV, teacher_TV)}
        for kind in KINDS:
            rows = kind.rows(teacher_TV, prompts.gold(example), prompts.numbers(example), prompts.size)
            losses[kind] = signal_loss(kind, rows, student_TV)
            kept[kind] += int((rows.sample_counts > 0).sum()) + (kind.signal != "sampled") * rows.token_ids.size
        # From every loss to the logits, and from there to the parameters.
        for which, loss in losses.items():
            for total, part in zip(sums[which], torch.autograd.grad(loss, parameters, retain_graph=True), strict=True):
                total += part
        kl, tokens = kl + float(losses[None].detach()), tokens + len(teacher_TV)
    full = sums[None]
    found = {kind: math.degrees(math.acos(min(1.0, cosine(sums[kind], full)))) for kind in KINDS}
    return kl / tokens, found, {kind: count / tokens for kind, count in kept.items()}


def cosine(a: list[torch.Tensor], b: list[torch.Tensor]) -> float:
    dot = lambda x, y: sum(float((i.double() * j.double()).sum()) for i, j in zip(x, y, strict=True))  # noqa: E731
    return dot(a, b) / math.sqrt(dot(a, a) * dot(b, b))


def with_noise(model: Any, share: float) -> Any:
    """A copy whose weight matrices carry Gaussian noise of `share` times their own standard deviation."""
    noisy = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in noisy.parameters():
            if parameter.ndim == 2:
                parameter += share * parameter.std() * torch.randn(parameter.shape, generator=generator)
    return noisy


def store_bytes(prompts: Prompts, teacher: Any) -> dict[Kind, float]:
    """Bytes per answer token of a store of each kind; top-K losses with and without tail read the same store."""
    examples = prompts.plan.examples
    wanted = {replace(kind, tail=True) for kind in KINDS}
    parts: dict[Kind, list[TeacherRows]] = {kind: [] for kind in wanted}
    for example in range(len(examples)):
        with torch.no_grad():
            logits_TV = prompts.logits(teacher, "zeroshot", example)
        for kind in wanted:
            parts[kind].append(kind.rows(logits_TV, prompts.gold(example), prompts.numbers(example), prompts.size))
    pilot = concatenate(parts[Kind(256)]).token_ids[:PILOT_TOKENS]
    vocabulary = Vocabulary.learn(pilot, prompts.size)
    found = {}
    for kind, rows in parts.items():
        with tempfile.TemporaryDirectory() as folder:
            spec = _spec(kind, prompts, int(teacher.config.vocab_size))
            with open_builder(folder, spec, examples, [], vocabulary=lambda: vocabulary) as builder:
                builder.add_view("zeroshot", {}, {})
                for shard in range(builder.plan.shards):
                    members = builder.plan.examples_of(shard)
                    builder.write_shard("zeroshot", shard, concatenate([rows[i] for i in members]))
            found[kind] = sum(open_objects(folder).sizes().values()) / prompts.plan.answer_tokens
    return found


def _spec(kind: Kind, prompts: Prompts, vocab_size: int) -> StoreSpec:
    records = prompts.plan.examples
    return StoreSpec(
        model="",
        tokenizer_size=prompts.size,
        vocab_size=vocab_size,
        tokenizer_hash="",
        tasks=tuple(dict.fromkeys(record.task for record in records)),
        languages=tuple(dict.fromkeys(record.language for record in records)),
        top_k=kind.top_k,
        signal=kind.signal,
        draws=kind.draws,
        encoding="compact",
        shard_tokens=4096,
        chunk_tokens=4096,
        teacher={},
        identity={},
    )


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shared", type=Path, default=SHARED, help="holds models/proxy-qwen3 and hub")
    parser.add_argument("--examples", type=int, default=8, help="per task, for the angles")
    parser.add_argument("--store-examples", type=int, default=60, help="per task, for the bytes")
    parser.add_argument("--noise", type=float, default=0.5, help="of the second student, in standard deviations")
    arguments = parser.parse_args()

    def configure(examples: int) -> Config:
        data = ["tasks=[gsm8k,nli,pa,qa,ner,pos]", "data.train_languages=in_language"]
        return load_config([], [*proxy_settings(arguments.shared, examples), *data])

    config = configure(arguments.examples)
    encoder = PromptEncoder(load_tokenizer(config.model))
    size = len(encoder.tokenizer)
    teacher = load_causal_lm(config.model, dtype="float32", device=torch.device("cpu"))
    prompts = Prompts(gather(config, ("fewshot", "zeroshot")), size)
    columns: list[dict[Kind, float]] = []
    for name, student in (("same weights", teacher), ("noise", with_noise(teacher, arguments.noise))):
        student.requires_grad_(True)
        kl, found, kept = angles(prompts, teacher, student)
        columns.append(found)
        print(f"student, {name}: KL {kl:.3f} nats per token, {prompts.plan.answer_tokens} answer tokens", flush=True)
    many = Prompts(gather(configure(arguments.store_examples), ("zeroshot",)), size)
    size_of = store_bytes(many, teacher.requires_grad_(False))
    print(f"bytes from {many.plan.answer_tokens:,} answer tokens")
    print("| signal | tokens kept | bytes/token | angle, same weights | angle, noise |\n|---|---:|---:|---:|---:|")
    for kind in KINDS:
        stored = size_of[replace(kind, tail=True)]
        print(f"| {kind} | {kept[kind]:.1f} | {stored:.1f} | {columns[0][kind]:.1f}° | {columns[1][kind]:.1f}° |")


if __name__ == "__main__":
    main()
