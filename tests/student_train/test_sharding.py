"""FSDP and DeepSpeed on two processes, as a user launches them: the same student as one process makes."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import peft
import pyarrow.parquet as pq
import pytest
import torch
import transformers
from safetensors.torch import load_file

from logitbank.configs.schema import TrainingConfig
from logitbank.student_train.sharding import load_optimizer_state, sharding_plugin, whole_optimizer_state
from logitbank.student_train.split import BatchPlan
from logitbank.student_train.train_command import main
from tests import processes

ROOT = Path(__file__).resolve().parents[2]
FSDP = {"fsdp_version": "2", "fsdp_auto_wrap_policy": "TRANSFORMER_BASED_WRAP", "fsdp_reshard_after_forward": "true"}
KINDS = {
    "lora": ["training.use_lora=true", "lora.dropout=0", "distillation.strategy=loss_ratio"],
    "full": ["training.use_lora=false", "training.loss_chunk_tokens=4", "training.gradient_checkpointing=true"],
}
FILES = {"lora": "adapter_model.safetensors", "full": "model.safetensors"}


class World:
    """A store, and `train-student` on it: here, or by two processes that shard."""

    def __init__(self, store: str, model: Path, directory: Path) -> None:
        self.directory = directory
        self._store = store
        self._model = model

    def arguments(self, name: str, *more: str) -> list[str]:
        return [
            *["--store", self._store, "--view", "fewshot", "--output", str(self.directory / name)],
            *["--results", str(self.directory / f"{name}-results")],
            *[option for option in more if option.startswith("--")],
            *[f"model.name={self._model}", "tasks=[nli,pos]", "training.precision=fp32"],
            *["training.num_workers=0", "training.max_steps=8", "training.save_steps=3", "training.logging_steps=1"],
            *["training.global_batch_size=8", "training.micro_batch_size=2", "training.warmup_steps=2"],
            *["training.learning_rate=0.001", *[option for option in more if not option.startswith("--")]],
        ]

    def launch(self, name: str, *more: str) -> subprocess.CompletedProcess[str]:
        """`accelerate launch` with a configuration file."""
        file = self.directory / "fsdp.yaml"
        lines = ["compute_environment: LOCAL_MACHINE", "distributed_type: FSDP", "num_machines: 1", "num_processes: 2"]
        file.write_text("\n".join([*lines, "fsdp_config:", *[f"  {key}: {value}" for key, value in FSDP.items()]]))
        launcher = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(file)]
        launcher += ["--main_process_port", "0", "-m", "logitbank", "train-student", *self.arguments(name, *more)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        return subprocess.run(launcher, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)

    def ranks(self, name: str, *more: str, **engine: str) -> list[processes.Finished]:
        """The same without the launcher and the seconds that imports take, FSDP by default."""
        environment = {key.upper(): value for key, value in ({"accelerate_use_fsdp": "true"} | FSDP | engine).items()}
        return processes.run_ranks(2, "train-student", *self.arguments(name, *more), env=environment)

    def run(self, name: str, *more: str, **engine: str) -> None:
        """`ranks`, both of which succeed."""
        done = self.ranks(name, *more, **engine)
        assert [rank.returncode for rank in done] == [0, 0], done[0].stderr[-3000:]

    def log(self, name: str, metric: str) -> list[float]:
        files = sorted((self.directory / f"{name}-results" / "training_log").glob("*"))
        rows = [row for path in files for row in pq.read_table(path).to_pylist()]
        of_all = [row for row in rows if (row["metric"], row["task"]) == (metric, "all")]
        return [row["value"] for row in sorted(of_all, key=lambda row: row["step"])]

    def same(self, name: str, reference: str, kind: str, checkpoint: str = "final") -> None:
        """Losses, gradients and weights of two runs are the same, up to the order of sums."""
        for metric in ("loss", "grad_norm"):
            expected = self.log(reference, metric)
            assert len(expected) == 8
            assert self.log(name, metric) == pytest.approx(expected, rel=1e-5), metric
        weights = [load_file(self.directory / run / checkpoint / FILES[kind]) for run in (name, reference)]
        assert weights[0].keys() == weights[1].keys()
        for key, tensor in weights[0].items():
            assert (tensor - weights[1][key]).abs().max().item() <= 1e-6, (checkpoint, key)


@pytest.fixture
def world(small_store: SimpleNamespace, tiny_model: Path, tmp_path: Path) -> World:
    return World(small_store.url, tiny_model, tmp_path)


@pytest.mark.parametrize("kind", KINDS)
def test_sharded_runs_resume_and_their_checkpoints_are_whole(world: World, tiny_model: Path, kind: str) -> None:
    main(world.arguments("one", *KINDS[kind]))
    if kind == "full":  # once as a user starts it
        done = world.launch("sharded", *KINDS[kind])
        assert done.returncode == 0, done.stderr[-3000:]
        assert "2 processes × 2 accumulation steps × 2, sharded by FSDP" in done.stderr
    else:
        world.run("sharded", *KINDS[kind])
    world.same("sharded", "one", kind)
    world.same("sharded", "one", kind, "checkpoint-3")
    final = world.directory / "sharded" / "final"
    if kind == "lora":
        base = transformers.AutoModelForCausalLM.from_pretrained(tiny_model)
        student = peft.PeftModel.from_pretrained(base, final)
    else:
        student, report = transformers.AutoModelForCausalLM.from_pretrained(final, output_loading_info=True)
        assert not report["missing_keys"]
        assert not report["unexpected_keys"]
    reference = world.directory / "one" / "final"
    other = transformers.AutoModelForCausalLM.from_pretrained(tiny_model if kind == "lora" else reference)
    other = peft.PeftModel.from_pretrained(other, reference) if kind == "lora" else other
    ids = torch.arange(2, 20)[None]
    torch.testing.assert_close(student(ids).logits, other(ids).logits, rtol=1e-4, atol=1e-5)
    whole = load_file(final / FILES[kind])
    for run in ("sharded", "one"):
        shutil.rmtree(world.directory / run / "final")
        shutil.rmtree(world.directory / run / "checkpoint-6")
    world.run("sharded", *KINDS[kind])
    for key, tensor in load_file(final / FILES[kind]).items():
        assert torch.equal(tensor, whole[key]), key
    # what one process began, two go on with, in shards, and two without shards with what that left
    world.run("one", *KINDS[kind])
    world.same("one", "sharded", kind)
    for checkpoint in ("final", "checkpoint-6"):
        shutil.rmtree(world.directory / "sharded" / checkpoint)
    world.run("sharded", *KINDS[kind], accelerate_use_fsdp="false")
    world.same("sharded", "one", kind)


def test_packed_steps_have_other_numbers_of_micro_batches(world: World) -> None:
    packed = [*KINDS["full"], "training.packing=true", "training.packed_tokens=24"]
    main(world.arguments("one", *packed))
    world.run("sharded", *packed)
    world.same("sharded", "one", "full")


def test_half_precision_with_a_frozen_base(world: World) -> None:
    half = [*KINDS["lora"], "training.precision=bf16", "model.dtype=bfloat16"]  # base and adapter of two dtypes
    main(world.arguments("one", *half))
    world.run("sharded", *half)
    assert world.log("sharded", "loss") == pytest.approx(world.log("one", "loss"), rel=3e-3)
    assert world.log("sharded", "grad_norm") == pytest.approx(world.log("one", "grad_norm"), rel=0.03)


def test_half_precision_rounds_neither_losses_nor_sums_of_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    for key, value in ({"accelerate_use_fsdp": "true"} | FSDP).items():
        monkeypatch.setenv(key.upper(), value)
    plan = BatchPlan(global_batch_size=4, micro_batch_size=2, world_size=2, rank=0)
    plugin = sharding_plugin("bf16", TrainingConfig(), plan)["fsdp_plugin"]
    plugin.set_mixed_precision("bf16")  # as Accelerate does on GPUs
    policy = plugin.mixed_precision_policy
    assert (policy.param_dtype, policy.reduce_dtype, policy.output_dtype) == (torch.bfloat16, torch.float32, None)


@pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="deepspeed is not installed")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("stage", ["1", "2", "3"])
def test_deepspeed_changes_nothing(world: World, kind: str, stage: str) -> None:
    engine = {"accelerate_use_fsdp": "false", "accelerate_use_deepspeed": "true"}
    engine["accelerate_deepspeed_zero_stage"] = stage
    main(world.arguments("one", *KINDS[kind]))
    world.run("sharded", *KINDS[kind], **engine)
    world.same("sharded", "one", kind)
    world.same("sharded", "one", kind, "checkpoint-3")
    whole = load_file(world.directory / "sharded" / "final" / FILES[kind])
    for checkpoint in ("final", "checkpoint-6"):
        shutil.rmtree(world.directory / "sharded" / checkpoint)
    world.run("sharded", *KINDS[kind], **engine)
    for key, tensor in load_file(world.directory / "sharded" / "final" / FILES[kind]).items():
        assert torch.equal(tensor, whole[key]), key


@pytest.mark.skipif(importlib.util.find_spec("deepspeed") is not None, reason="deepspeed is installed")
def test_deepspeed_that_is_not_there_is_refused(
    world: World, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    with pytest.raises(SystemExit):
        main(world.arguments("refused"))
    assert "error: distributed_type: DEEPSPEED needs the package deepspeed" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("override", "fsdp", "says"),
    [
        ("distillation.strategy=fixed", {"fsdp_version": "1"}, "fsdp_config.fsdp_version: expected 2"),
        ("distillation.strategy=fixed", {"fsdp_activation_checkpointing": "true"}, "training.gradient_checkpointing"),
        ("distillation.strategy=gradient_conflict", {}, "gradient_conflict needs whole gradients, but FSDP"),
        ("distillation.strategy=entropy*meta", {}, "meta needs whole gradients, but FSDP"),
    ],
)
def test_what_shards_cannot_do_is_refused(world: World, override: str, fsdp: dict[str, str], says: str) -> None:
    done = world.ranks("refused", override, **fsdp)
    assert [rank.returncode for rank in done] == [2, 2]
    assert all(says in rank.stderr for rank in done)
    assert not (world.directory / "refused").exists()


def test_a_parameter_without_gradients_has_no_moments_after_a_resume() -> None:
    def make() -> tuple[torch.nn.Sequential, SimpleNamespace]:
        model = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Linear(3, 3))
        return model, SimpleNamespace(optimizer=torch.optim.AdamW(model.parameters(), lr=0.1))

    model, optimizer = make()
    model[0](torch.ones(2, 3)).sum().backward()
    optimizer.optimizer.step()
    optimizer.optimizer.zero_grad()
    other, other_optimizer = make()
    load_optimizer_state(other, other_optimizer, whole_optimizer_state(model, optimizer))
    states = [o.optimizer.state_dict()["state"] for o in (optimizer, other_optimizer)]
    assert states[0].keys() == states[1].keys() == {0, 1}
    for number in (0, 1):
        for name, tensor in states[0][number].items():
            assert torch.equal(tensor, states[1][number][name]), name
