"""`training.packing`: fewer forward passes, the same losses, gradients and students."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace

import pyarrow.parquet as pq
import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from logitbank.configs.schema import ConfigError, TrainingConfig
from logitbank.student_train.batch import MicroBatches
from logitbank.student_train.order import ExampleOrder
from logitbank.student_train.setup import split_batch
from logitbank.student_train.split import BatchPlan, Split, pack
from logitbank.student_train.train_command import main
from tests import processes, tiny

pytestmark = pytest.mark.numeric

ROW = 96  # tokens of a packed row: of the store's longest sequence, and of two or three others


@given(
    st.lists(st.integers(1, 50), min_size=4, max_size=60).filter(lambda lengths: len(lengths) % 4 == 0),
    st.integers(50, 200),
    st.sampled_from([1, 2, 4]),
)
def test_rows_hold_every_sequence_once_and_are_as_many_for_each_rank(
    lengths: list[int], tokens: int, ranks: int
) -> None:
    rows = pack(lengths, tokens, multiple_of=ranks)
    assert rows == pack(list(lengths), tokens, multiple_of=ranks)
    assert sorted(position for row in rows for position in row) == list(range(len(lengths)))
    assert all(rows)
    assert len(rows) % ranks == 0
    loads = [sum(lengths[position] for position in row) for row in rows]
    assert max(loads) <= tokens
    assert loads == sorted(loads, reverse=True)
    # first-fit decreasing needs at most 11/9 of the fewest rows and 6/9 of one (Dósa 2007)
    assert len(pack(lengths, tokens)) <= 11 / 9 * optimum(sorted(lengths, reverse=True), tokens) + 6 / 9


def optimum(lengths: Sequence[int], tokens: int) -> int:
    """At least so many rows: by their sum, and by those of which no two share a row."""
    return max(-(-sum(lengths) // tokens), sum(2 * length > tokens for length in lengths))


def test_rows_are_level_where_they_can_be() -> None:
    assert pack([6, 6, 2, 2, 2, 2], 18, multiple_of=2) == [[0, 2, 4], [1, 3, 5]]
    # into the emptiest row each, [5, 3, 3] would not fit: first-fit decreasing fills two
    assert pack([5, 4, 3, 3, 3], 9) == [[0, 1], [2, 3, 4]]


def test_every_rank_takes_its_rows_of_the_same_step() -> None:
    lengths = [5 + 7 * i % 23 for i in range(64)]
    order = ExampleOrder({"one": torch.arange(64).numpy()}, torch.zeros(64, dtype=torch.int64).numpy(), seed=0)
    for world in (1, 2, 4):
        splits = [Split(order, BatchPlan(16, 4, world, rank, 60), lengths) for rank in range(world)]
        for step in range(5):
            rows = [split.micro_batches(step) for split in splits]
            assert len({len(of_rank) for of_rank in rows}) == 1
            assert sorted(i for of_rank in rows for row in of_rank for i in row) == sorted(order.step(step, 16))


@pytest.fixture(scope="module")
def store(make_store: Callable[..., SimpleNamespace]) -> SimpleNamespace:
    """Sequences of three answers, of 15 to 80 tokens."""
    return make_store(count=40, top_k=16, max_answer=20, turns=3, shard_tokens=80)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory, tokenizer: object, tiny_model: Path) -> dict[str, Path]:
    """Qwen3, Llama, and Gemma with a window shorter than the sequences."""
    torch.manual_seed(0)
    gemma = transformers.Gemma3TextConfig(
        **{**tiny.SHAPE, "vocab_size": 104},
        sliding_window=8,
        layer_types=["sliding_attention", "full_attention"],
        pad_token_id=0,
    )
    path = tmp_path_factory.mktemp("gemma")
    transformers.AutoModelForCausalLM.from_config(gemma).save_pretrained(path)
    tokenizer.save_pretrained(path)  # type: ignore[attr-defined]
    llama = tiny.save_model(tmp_path_factory.mktemp("llama"), tokenizer, rows=104, architecture="llama")
    return {"qwen3": tiny_model, "llama": llama, "gemma": path}


class Runs:
    """`train-student` with packing and without, in one directory."""

    def __init__(self, store: str, directory: Path) -> None:
        self.directory = directory
        self._store = store

    def arguments(self, name: str, model: Path, *changes: str) -> list[str]:
        return [
            *["--store", self._store, "--view", "fewshot", "--output", str(self.directory / name)],
            *[f"model.name={model}", "tasks=[nli,pos]", "training.precision=fp32", "lora.dropout=0"],
            *["training.num_workers=0", "training.max_steps=4", "training.global_batch_size=8"],
            *["training.micro_batch_size=2", "training.logging_steps=1", "training.warmup_steps=2"],
            *["training.learning_rate=0.001", f"training.packed_tokens={ROW}", *changes],
        ]

    def log(self, name: str, metric: str) -> list[float]:
        files = sorted((self.directory / name / "results" / "training_log").glob("*"))
        rows = [row for path in files for row in pq.read_table(path).to_pylist()]
        return [row["value"] for row in rows if (row["metric"], row["task"]) == (metric, "all")]

    def weights(self, name: str, checkpoint: str = "final") -> dict[str, torch.Tensor]:
        (file,) = (self.directory / name / checkpoint).glob("*model.safetensors")
        return load_file(file)

    def same(self, name: str, reference: str) -> None:
        """Losses, gradients and weights of two runs are the same, up to the order of sums."""
        for metric, rel in (("loss", 1e-5), ("grad_norm", 1e-5)):
            expected = self.log(reference, metric)
            assert len(expected) == 4
            assert self.log(name, metric) == pytest.approx(expected, rel=rel), metric
        # Adam makes steps of the same size of tiny gradients, and so of what rounding does to them
        weights, others = self.weights(name), self.weights(reference)
        assert weights.keys() == others.keys()
        for key, tensor in weights.items():
            assert (tensor - others[key]).norm() <= 1e-4 * others[key].norm(), key


@pytest.fixture
def runs(store: SimpleNamespace, tmp_path: Path) -> Runs:
    return Runs(store.url, tmp_path)


@pytest.mark.parametrize("use_lora", [True, False], ids=["lora", "full"])
@pytest.mark.parametrize("architecture", ["qwen3", "llama", "gemma"])
def test_packed_and_padded_students_are_the_same(
    runs: Runs, models: dict[str, Path], architecture: str, use_lora: bool
) -> None:
    kind = f"training.use_lora={use_lora}"
    main(runs.arguments("padded", models[architecture], kind))
    main(runs.arguments("packed", models[architecture], kind, "training.packing=true"))
    runs.same("packed", "padded")
    assert max(runs.log("packed", "padding")) == 0 < min(runs.log("padded", "padding"))
    if not use_lora:  # nothing of how it was trained is in it
        texts = [(runs.directory / name / "final" / "config.json").read_text() for name in ("packed", "padded")]
        assert texts[0] == texts[1]


@pytest.mark.parametrize(
    "changes",
    [
        ["distillation.strategy=gradient_conflict"],
        ["distillation.strategy=meta", "distillation.meta_batch_size=8"],
        ["distillation.strategy=entropy*loss_ratio", "distillation.gate=fewshot_gain", "distillation.loss=forward_kl"],
        ["training.loss_weight=conversation", "training.gradient_checkpointing=true", "training.loss_chunk_tokens=7"],
    ],
    ids=lambda changes: changes[0],
)
def test_packing_changes_nothing_of_how_a_student_is_taught(
    runs: Runs, models: dict[str, Path], changes: list[str]
) -> None:
    full = "training.use_lora=false"
    main(runs.arguments("padded", models["qwen3"], full, *changes))
    main(runs.arguments("packed", models["qwen3"], full, "training.packing=true", *changes))
    runs.same("packed", "padded")


def test_two_processes_pack_the_same_step_and_resume_bit_for_bit(runs: Runs, models: dict[str, Path]) -> None:
    changes = ["training.packing=true", "training.use_lora=false", "training.save_steps=2"]
    main(runs.arguments("one", models["qwen3"], *changes))
    arguments = runs.arguments("two", models["qwen3"], *changes)
    done = processes.run_ranks(2, "train-student", *arguments)
    assert [rank.returncode for rank in done] == [0, 0], done[0].stderr[-3000:]
    assert f"8 examples a step: 2 processes × packed rows of at most {ROW} tokens" in done[0].stderr
    runs.same("two", "one")
    for name in ("one", "two"):
        whole = runs.weights(name)
        shutil.rmtree(runs.directory / name / "final")
        if name == "one":
            main(runs.arguments("one", models["qwen3"], *changes))
        else:
            assert [rank.returncode for rank in processes.run_ranks(2, "train-student", *arguments)] == [0, 0]
        assert all(torch.equal(tensor, whole[key]) for key, tensor in runs.weights(name).items()), name


def test_a_row_holds_the_stores_rows_of_its_own_examples(store: SimpleNamespace) -> None:
    tasks = {"nli": torch.arange(0, 40, 2).numpy(), "pos": torch.arange(1, 40, 2).numpy()}
    order = ExampleOrder(tasks, torch.zeros(40, dtype=torch.int64).numpy(), seed=0)
    plan = BatchPlan(8, 2, 1, 0, ROW)
    data = MicroBatches(lambda: store.store, order, plan, view="fewshot", top_k=5)
    rows = Split(order, plan, store.store.examples.input_length).micro_batches(1)
    assert len(rows) > 2
    assert max(map(len, rows)) > 1
    for number, examples in enumerate(rows):
        batch = data[1, number]
        sequences = [store.records[i].sequence for i in examples]
        assert batch.input_ids_BL.tolist() == [[token for s in sequences for token in s.ids[:-1].tolist()]]
        assert batch.lengths == tuple(len(s) - 1 for s in sequences)
        t, start = 0, 0
        for i, sequence in zip(examples, sequences, strict=True):
            taught = store.store.read([i], "fewshot")
            for j, position in enumerate(sequence.answer_positions.tolist()):
                assert batch.answer_index_T[t] == start + position - 1
                assert batch.gold_T[t] == sequence.ids[position]
                assert batch.top_ids_TK[t].tolist() == taught.token_ids[j, :5].tolist()
                t += 1
            start += len(sequence) - 1
        assert t == len(batch.gold_T)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (
            ["training.packed_tokens=40"],
            "training.packed_tokens: expected at least [5-9][0-9], the longest student seq",
        ),
        (["training.packed_tokens=3"], "training.packed_tokens: expected a number of at least 8, got 3"),
    ],
)
def test_rows_too_short_are_refused(
    runs: Runs, models: dict[str, Path], changes: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(runs.arguments("refused", models["qwen3"], "training.packing=true", *changes))
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert re.match(f"error: {says}", line)
    assert not (runs.directory / "refused").exists()


def test_what_cannot_split_a_packed_step_is_refused(
    runs: Runs, models: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    packed = runs.arguments("refused", models["qwen3"], "training.packing=true", "training.global_batch_size=7")
    done = processes.run_ranks(2, "train-student", *packed)
    assert done[0].returncode == 2
    assert done[1].returncode != 0  # 2, unless the first was gone before it could say the same
    assert "training.global_batch_size: expected a multiple of 2 (processes), got 7" in done[0].stderr
    assert not (runs.directory / "refused").exists()
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    with pytest.raises(ConfigError, match=r"training\.packing: DeepSpeed needs the same number of micro-batches"):
        split_batch(TrainingConfig(packing=True))
