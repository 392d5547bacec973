"""`export-model`: means of adapters and of weights, merging, and the directory that comes of it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel, AutoModelForCausalLM

from logitbank.configs.schema import Config, ModelConfig
from logitbank.models.classifier import open_classifier
from logitbank.models.pair_batch import PairBatch, collate_pairs
from logitbank.models.pair_head import HEAD_SETTINGS, HEAD_WEIGHTS
from logitbank.preference import SEEN_PROMPTS, TASK, SeenPrompts
from logitbank.student_train.export import command
from logitbank.tasks.preference import PairPacker
from tests.storage import label_stores
from tests.students import save_adapter, save_base, save_whole
from tests.tiny import chat_tokenizer

# of rank, scale and layers of their own; the first is scaled by alpha / √r
ADAPTERS: tuple[dict[str, Any], ...] = (
    {"use_rslora": True},
    {"r": 7, "lora_alpha": 30, "target_modules": ["q_proj", "v_proj", "gate_proj"]},
    {"target_modules": ["o_proj", "down_proj"]},
)

Refuse = Callable[..., str]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_base(tmp_path_factory.mktemp("bases") / "base")


@pytest.fixture(scope="module")
def adapters(base: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    home = tmp_path_factory.mktemp("adapters")
    return [save_adapter(home / f"fold-{seed}", base, seed, **changes) for seed, changes in enumerate(ADAPTERS)]


@pytest.fixture(scope="module")
def mean(adapters: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The export of all adapters' mean."""
    output = tmp_path_factory.mktemp("exports") / "mean"
    command.main(["--average", *map(str, adapters), "--output", str(output)])
    return output


@pytest.fixture
def refuse(capsys: pytest.CaptureFixture[str]) -> Refuse:
    """`refuse(*arguments)`: the message with which the command ends; it has written nothing."""

    def run(*arguments: object, output: Path) -> str:
        before = sorted(output.parent.rglob("*"))
        with pytest.raises(SystemExit) as ended:
            command.main([*map(str, arguments), "--output", str(output)])
        assert ended.value.code == 2
        assert sorted(output.parent.rglob("*")) == before
        lines = capsys.readouterr().err.splitlines()
        return next(line for line in lines if line.startswith("error: "))

    return run


def exported(*arguments: object, output: Path) -> Path:
    """The output of a command that succeeds."""
    command.main([*map(str, arguments), "--output", str(output)])
    return output


def record(directory: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((directory / "export.json").read_text())
    return content


def batch() -> PairBatch:
    packer = PairPacker(chat_tokenizer(), max_tokens=256)
    return collate_pairs([packer.pack(pair) for pair in label_stores.TRAIN[:3]])


def logits(directory: Path, base: Path | None = None) -> torch.Tensor:
    """What a checkpoint says of three pairs."""
    config = Config(tasks=[TASK], model=ModelConfig(name=str(base or directory)))
    with torch.no_grad():
        return open_classifier(config, device="cpu", checkpoint=directory)(batch())


def delta_weights(adapter: Path, base: Path) -> dict[str, torch.Tensor]:
    """ΔW of each layer in float64, from the matrices as they are stored."""
    config = json.loads((adapter / "adapter_config.json").read_text())
    scale = config["lora_alpha"] / (config["r"] ** 0.5 if config["use_rslora"] else config["r"])
    stored = {name: value.double() for name, value in load_file(adapter / "adapter_model.safetensors").items()}
    down = {name: value for name, value in stored.items() if name.endswith("lora_A.weight")}
    return {
        name.removeprefix("base_model.model.").removesuffix("lora_A.weight") + "weight": scale
        * (stored[name.replace("lora_A", "lora_B")] @ value)
        for name, value in down.items()
    }


@pytest.mark.numeric
def test_an_averaged_adapter_is_the_mean_of_delta_w(base: Path, adapters: list[Path], mean: Path) -> None:
    before, after = load_file(base / "model.safetensors"), load_file(mean / "model.safetensors")
    assert before.keys() == after.keys()  # the head of the language model stays
    deltas = [delta_weights(adapter, base) for adapter in adapters]
    moved = set()
    for name, weight in before.items():
        layer = name.removeprefix("model.")
        expected = sum((each[layer] for each in deltas if layer in each), torch.zeros_like(weight).double()) / 3
        assert (after[name].double() - weight.double() - expected).abs().max() < 1e-6
        moved |= {layer} if expected.abs().max() > 0.05 else set()
    assert {name.split(".")[-2] for name in moved} == {"q_proj", "v_proj", "gate_proj", "o_proj", "down_proj"}


@pytest.mark.numeric
def test_heads_are_averaged_too(adapters: list[Path], mean: Path) -> None:
    heads = [load_file(adapter / HEAD_WEIGHTS) for adapter in adapters]
    for name, value in load_file(mean / HEAD_WEIGHTS).items():
        torch.testing.assert_close(value, torch.stack([head[name] for head in heads]).mean(dim=0))
    assert (mean / HEAD_SETTINGS).read_text() == (adapters[0] / HEAD_SETTINGS).read_text()
    assert logits(mean).std() > 0.1


def test_an_export_saw_what_any_of_its_sources_saw(adapters: list[Path], mean: Path, tmp_path: Path) -> None:
    seen = SeenPrompts.read(mean)
    assert seen is not None
    assert (seen.trained.tolist(), seen.selected.tolist()) == ([0, 1, 2, 7], [100, 101, 102])
    silent = shutil.copytree(adapters[1], tmp_path / "silent")
    (silent / SEEN_PROMPTS).unlink()
    unknown = exported("--average", adapters[0], silent, output=tmp_path / "unknown")
    assert SeenPrompts.read(unknown) is None


@pytest.mark.numeric
@pytest.mark.parametrize("number", range(len(ADAPTERS)))
def test_a_merged_adapter_says_what_the_adapter_says(
    base: Path, adapters: list[Path], number: int, tmp_path: Path
) -> None:
    merged = exported("--checkpoint", adapters[number], output=tmp_path / "merged")
    expected = logits(adapters[number], base)
    torch.testing.assert_close(logits(merged), expected, atol=2e-5, rtol=1e-5)
    assert (expected - logits(adapters[number - 1], base)).abs().max() > 0.1


@pytest.mark.numeric
@pytest.mark.parametrize("targets", [["q_proj", "up_proj"], ["embed_tokens"], ["lm_head", "q_proj"]], ids="-".join)
def test_an_adapter_of_a_language_model_is_merged_tied_weights_or_not(
    base: Path, targets: list[str], tmp_path: Path
) -> None:
    torch.manual_seed(5)
    lora = peft.LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=targets, init_lora_weights=False)
    student = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(base), lora).eval()
    student.save_pretrained(tmp_path / "student", save_embedding_layers=False)
    merged = exported("--checkpoint", tmp_path / "student", output=tmp_path / "merged")
    ids = torch.tensor([[5, 6, 7, 8, 9]])
    with torch.no_grad():
        expected = student(ids).logits
        got = AutoModelForCausalLM.from_pretrained(merged)(ids).logits
        unchanged = AutoModelForCausalLM.from_pretrained(base)(ids).logits
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)
    assert (unchanged - expected).abs().max() > 0.1
    assert not (merged / HEAD_SETTINGS).exists()


@pytest.mark.numeric
def test_whole_models_are_averaged_file_by_file(base: Path, tmp_path: Path) -> None:
    wholes = [save_whole(tmp_path / f"fold-{seed}", base, seed, max_shard_size="40KB") for seed in range(3)]
    assert len(list(wholes[0].glob("model-*.safetensors"))) > 2
    mean = exported("--average", *wholes, output=tmp_path / "mean")
    weights = [AutoModel.from_pretrained(each).state_dict() for each in (*wholes, mean)]
    for name, value in weights[3].items():
        expected = torch.stack([each[name].double() for each in weights[:3]]).mean(dim=0)
        assert (value.double() - expected).abs().max() < 1e-6
    assert logits(mean).isfinite().all()


def test_weights_are_stored_as_the_base_is_or_as_asked(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base")
    AutoModelForCausalLM.from_pretrained(base).bfloat16().save_pretrained(base)
    adapter = save_adapter(tmp_path / "adapter", base, 1)
    merged = exported("--checkpoint", adapter, output=tmp_path / "merged")
    wide = exported("--checkpoint", adapter, "--dtype", "float32", output=tmp_path / "wide")
    assert {value.dtype for value in load_file(merged / "model.safetensors").values()} == {torch.bfloat16}
    assert {value.dtype for value in load_file(wide / "model.safetensors").values()} == {torch.float32}
    for name, value in load_file(wide / "model.safetensors").items():  # rounded once, after merging
        assert torch.equal(value.bfloat16(), load_file(merged / "model.safetensors")[name])
    copied = exported("--checkpoint", merged, "--dtype", "float32", output=tmp_path / "copied")
    assert AutoModel.from_pretrained(copied, dtype="auto").dtype == torch.float32


def test_a_finished_export_is_left_and_another_one_refused(
    adapters: list[Path], refuse: Refuse, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    output = exported("--average", *adapters[:2], output=tmp_path / "mean")
    before = (output / "model.safetensors").stat()
    exported("--average", *adapters[:2], output=output)
    assert (output / "model.safetensors").stat() == before
    assert refuse("--average", *adapters[1:], output=output).endswith(
        "mean holds another export (of other checkpoints); choose another"
    )
    message = refuse("--average", *adapters[:2], "--dtype", "bfloat16", output=output)
    assert "holds another export (dtype float32, got bfloat16)" in message
    (output / "model.safetensors").write_bytes(b"")  # cut short by a disk
    exported("--average", *adapters[:2], output=output)
    assert (output / "model.safetensors").stat().st_size == before.st_size


def test_what_a_killed_export_left_is_no_obstacle(adapters: list[Path], tmp_path: Path) -> None:
    for stage in ("partial", "merged"):
        (tmp_path / f".mean.{stage}").mkdir()
        (tmp_path / f".mean.{stage}" / "model.safetensors").write_bytes(b"half")
    exported("--average", *adapters[:2], output=tmp_path / "mean")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mean"]


def test_the_record_says_what_was_made_from_what(base: Path, adapters: list[Path], mean: Path) -> None:
    content = record(mean)
    assert content["base"] == {"name": str(base), "revision": None}
    assert [each["path"] for each in content["checkpoints"]] == [str(adapter) for adapter in adapters]
    assert len({each["weights"] for each in content["checkpoints"]}) == 3
    assert content["result"]["averaged"] == "mean of ΔW, and of heads"
    assert content["result"]["bytes"] > 10_000


def test_a_base_that_moved_is_named(base: Path, refuse: Refuse, tmp_path: Path) -> None:
    moving = shutil.copytree(base, tmp_path / "moving")
    adapter = save_adapter(tmp_path / "adapter", moving, 1)
    moved = moving.rename(tmp_path / "moved")
    output = tmp_path / "merged"
    assert refuse("--checkpoint", adapter, output=output).endswith("which does not exist; add --base MODEL")
    assert record(exported("--checkpoint", adapter, "--base", moved, output=output))["base"]["name"] == str(moved)


def test_copies_of_one_base_are_one_base_and_others_are_not(base: Path, refuse: Refuse, tmp_path: Path) -> None:
    copy = shutil.copytree(base, tmp_path / "copy" / "base")
    other = save_base(tmp_path / "other" / "base", seed=9)
    first, second, third = (
        save_adapter(tmp_path / f"fold-{seed}", each, seed) for seed, each in enumerate((base, copy, other))
    )
    exported("--average", first, second, output=tmp_path / "mean")
    message = refuse("--average", first, second, third, output=tmp_path / "no")
    assert f"--average: expected one base model, got {base} for {first} and {other} for {third}" in message


def _lose(name: str) -> Callable[[Path], None]:
    return lambda directory: (directory / name).unlink()


def _change(name: str, **changes: Any) -> Callable[[Path], None]:
    def change(directory: Path) -> None:
        content = json.loads((directory / name).read_text())
        (directory / name).write_text(json.dumps({**content, **changes}))

    return change


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_lose(HEAD_WEIGHTS), "spoilt has no classifier_head.safetensors with the trained weights of its head"),
        (_lose(HEAD_SETTINGS), "spoilt has no classifier.json, so it is unknown how its head reads pairs"),
        (_lose("adapter_config.json"), "spoilt holds neither adapter_config.json (an adapter) nor config.json"),
        (_lose("adapter_model.safetensors"), "spoilt has no adapter_model.safetensors, the adapter's weights"),
        (_change(HEAD_SETTINGS, pooling="last"), "the heads differ: classifier.json of"),
        (_change("adapter_config.json", use_dora=True), "spoilt has use_dora, but export-model only reads plain LoRA"),
        (_change("adapter_config.json", bias="all"), "spoilt has bias, but export-model only reads plain LoRA"),
        (_change("adapter_config.json", peft_type="IA3"), "expected a LoRA adapter in"),
        (_change("adapter_config.json", r=8), "the adapter does not fit"),
        (_change("adapter_config.json", target_modules=["q_proj"]), "the adapter does not fit"),
        (_change("adapter_config.json", base_model_name_or_path=None), "add --base MODEL"),
    ],
)
def test_a_spoilt_adapter_is_refused(
    adapters: list[Path], spoil: Callable[[Path], None], message: str, refuse: Refuse, tmp_path: Path
) -> None:
    spoilt = shutil.copytree(adapters[0], tmp_path / "spoilt")
    spoil(spoilt)
    assert message in refuse("--average", adapters[1], spoilt, output=tmp_path / "no")


def test_an_adapter_and_a_whole_model_have_no_mean(
    base: Path, adapters: list[Path], refuse: Refuse, tmp_path: Path
) -> None:
    whole = save_whole(tmp_path / "whole", base, 1)
    message = refuse("--average", adapters[0], whole, output=tmp_path / "no")
    assert "fold-0 is an adapter and" in message
    assert "whole a whole model; give only adapters or only whole models" in message


def test_whole_models_of_other_layers_or_shapes_have_no_mean(base: Path, refuse: Refuse, tmp_path: Path) -> None:
    deep = save_base(tmp_path / "deep", num_hidden_layers=3)
    wide = save_base(tmp_path / "wide", intermediate_size=64)
    first, second, third = (
        save_whole(tmp_path / name, each, 1) for name, each in (("one", base), ("two", deep), ("three", wide))
    )
    assert "is in only one of them" in refuse("--average", first, second, output=tmp_path / "no")
    assert "expected the shape (32, 48), got (32, 64)" in refuse("--average", first, third, output=tmp_path / "no")


def test_an_output_that_something_else_wrote_is_refused(adapters: list[Path], refuse: Refuse, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("x")
    message = refuse("--average", *adapters, output=tmp_path / "mine")
    assert "mine exists but was not written by export-model (it has no export.json); choose another" in message


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--bits", "4"], "--bits: needs --quantize gptq"),
        (["--quantize", "int8", "--group-size", "64"], "--group-size: needs --quantize gptq"),
        (["--quantize", "int8", "--fallback", "int8"], "--fallback: needs --quantize gptq"),
        (["--store", "x"], "--store: is only used with --quantize; add --quantize, or leave it out"),
        (["--quantize", "gptq"], "--quantize gptq: needs --store URL, the label store whose rows calibrate it"),
        (["--quantize", "int8", "--samples", "4"], "--samples: needs --quantize gptq"),
        (["--quantize", "gptq", "--bits", "5"], "--bits: invalid choice: 5 (choose from 4, 8)"),
    ],
)
def test_options_that_would_say_nothing_are_refused(
    adapters: list[Path], arguments: list[str], message: str, refuse: Refuse, tmp_path: Path
) -> None:
    assert message in refuse("--checkpoint", adapters[0], *arguments, output=tmp_path / "no")


def test_the_mean_of_one_is_refused(adapters: list[Path], refuse: Refuse, tmp_path: Path) -> None:
    assert "expected at least two checkpoints, got one" in refuse("--average", adapters[0], output=tmp_path / "no")
