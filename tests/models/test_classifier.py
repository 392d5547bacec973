"""Classifiers of pairs: pooling by the batch's positions, heads, letters, what is saved and opened again."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
import transformers
from torch.utils._python_dispatch import TorchDispatchMode

from logitbank.configs import Config, ConfigError, load_config
from logitbank.errors import MemoryExhaustedError
from logitbank.models.classifier import PairClassifier, letter_ids, open_classifier
from logitbank.models.pair_batch import collate_pairs
from logitbank.models.pair_head import HeadSettings, read_head_settings
from logitbank.models.pair_scoring import score_pairs
from logitbank.preference import PackedPair
from logitbank.sequences import Span
from tests import tiny

ROWS = 280
POOLINGS = ("last", "mean", "pair")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Directories of tiny random models of four architectures with the byte tokenizer, float32."""
    tokenizer, found = tiny.chat_tokenizer(), {}
    shape = {"initializer_range": 0.2, "max_position_embeddings": 128}
    for name in ("qwen3", "llama"):
        path = tmp_path_factory.mktemp(name)
        found[name] = tiny.save_model(path, tokenizer, rows=ROWS, architecture=name, pad_token_id=65, **shape)
    encoder = {
        "vocab_size": ROWS, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
        "intermediate_size": 48, "pad_token_id": 65, **shape,
    }  # fmt: skip
    deberta = {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 8}
    for name, model in (
        ("bert", transformers.BertModel(transformers.BertConfig(**encoder))),
        ("deberta", transformers.DebertaV2Model(transformers.DebertaV2Config(**encoder, **deberta))),
    ):
        found[name] = tmp_path_factory.mktemp(name)
        model.save_pretrained(found[name])
        tokenizer.save_pretrained(found[name])
    return found


def configure(model: Path, *overrides: str) -> Config:
    return load_config([], [f"model.name={model}", "tasks=[preference]", *overrides], any_task=True)


def packed(lengths: Sequence[tuple[int, int, int]], seed: int = 0) -> list[PackedPair]:
    """Pairs of a prompt, two answers and one last token, of so many random byte tokens each."""
    generator = np.random.default_rng(seed)
    found = []
    for prompt, a, b in lengths:
        ids = generator.integers(5, 200, prompt + a + b + 1).astype(np.int32)
        found.append(PackedPair(ids, Span(prompt, a), Span(prompt + a, b)))
    return found


PAIRS = packed([(5, 4, 9), (12, 1, 3), (3, 20, 2), (7, 7, 7)])


def randomised(classifier: PairClassifier, seed: int = 3) -> PairClassifier:
    """The classifier with a head that is not zero."""
    assert classifier.head is not None
    torch.manual_seed(seed)
    torch.nn.init.normal_(classifier.head.linear.weight, std=0.3)
    torch.nn.init.normal_(classifier.head.linear.bias)
    return classifier


def alone(classifier: PairClassifier, pair: PackedPair, pooling: str) -> np.ndarray:
    """float64 reference: one pair without padding or mask, pooled by slices."""
    inner = classifier.backbone
    with torch.no_grad():
        hidden = inner(input_ids=torch.from_numpy(pair.ids)[None].long()).last_hidden_state[0].double().numpy()
    a, b = (hidden[span.start : span.stop].mean(axis=0) for span in (pair.response_a, pair.response_b))
    features = {
        "last": hidden[-1],
        "mean": hidden.mean(axis=0),
        "pair": np.concatenate([hidden[-1], a - b, abs(a - b)]),
    }
    assert classifier.head is not None
    linear = classifier.head.linear
    return features[pooling] @ linear.weight.detach().double().numpy().T + linear.bias.detach().double().numpy()


@pytest.mark.numeric
@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("architecture", ["qwen3", "llama", "bert", "deberta"])
def test_logits_are_those_of_each_pair_alone(models: dict[str, Path], architecture: str, pooling: str) -> None:
    config = configure(models[architecture], f"model.pooling={pooling}")
    classifier = randomised(open_classifier(config, device="cpu", new_head=True))
    with torch.no_grad():
        got = classifier(collate_pairs(PAIRS)).numpy()
    assert got.dtype == np.float32
    expected = np.stack([alone(classifier, pair, pooling) for pair in PAIRS])
    # float32 sums of some hundred terms: 1e-4 is a few hundred units in the last place of numbers of size 10
    np.testing.assert_allclose(got, expected, atol=1e-4)
    assert np.ptp(expected, axis=0).min() > 0.01


@pytest.mark.parametrize("architecture", ["qwen3", "llama", "bert", "deberta"])
def test_padding_is_never_looked_for_by_its_id(models: dict[str, Path], architecture: str) -> None:
    """The models pad with token 65, which is real tokens too here: the last ones, and one in an answer."""
    pairs = [pair._replace(ids=pair.ids.copy()) for pair in PAIRS]
    for pair in pairs:
        pair.ids[-2:] = 65
        pair.ids[pair.response_a.start] = 65
    classifier = randomised(open_classifier(configure(models[architecture]), device="cpu", new_head=True))
    with torch.no_grad():
        logits = [classifier(collate_pairs(pairs, pad_id)).numpy() for pad_id in (65, 0, 7)]
    np.testing.assert_array_equal(logits[0], logits[1])
    np.testing.assert_array_equal(logits[0], logits[2])
    for row, pair in enumerate(pairs):
        np.testing.assert_allclose(logits[0][row], alone(classifier, pair, "pair"), atol=1e-4)


@pytest.mark.parametrize("architecture", ["qwen3", "bert"])
def test_the_token_that_models_pad_with_is_learned(models: dict[str, Path], architecture: str) -> None:
    classifier = randomised(open_classifier(configure(models[architecture]), device="cpu", new_head=True))
    pairs = [pair._replace(ids=np.full_like(pair.ids, 65)) for pair in PAIRS]
    classifier(collate_pairs(pairs)).sum().backward()
    assert classifier.backbone.get_input_embeddings().weight.grad[65].abs().sum() > 0
    unused = [name for name, parameter in classifier.named_parameters() if parameter.grad is None]
    assert unused == []  # DDP refuses parameters without a gradient


def test_a_new_head_finds_all_classes_equally_likely(models: dict[str, Path]) -> None:
    classifier = open_classifier(configure(models["qwen3"]), device="cpu", new_head=True)
    with torch.no_grad():
        assert torch.equal(classifier(collate_pairs(PAIRS)), torch.zeros(len(PAIRS), 3))


def test_the_head_computes_in_float32_under_autocast(models: dict[str, Path]) -> None:
    classifier = randomised(open_classifier(configure(models["qwen3"]), device="cpu", new_head=True))
    heads: list[torch.Tensor] = []
    assert classifier.head is not None
    classifier.head.linear.register_forward_hook(lambda _, inputs, output: heads.extend([inputs[0], output]))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        logits = classifier(collate_pairs(PAIRS))
    assert [logits.dtype, *(tensor.dtype for tensor in heads)] == [torch.float32] * 3


@pytest.mark.numeric
@pytest.mark.parametrize("architecture", ["qwen3", "llama"])
def test_letters_are_the_next_tokens_of_the_whole_model(models: dict[str, Path], architecture: str) -> None:
    """Against the model's own forward, one pair at a time; the ids are those of the tokenizer."""
    classifier = open_classifier(configure(models[architecture], "model.head=letters"), device="cpu")
    lm = transformers.AutoModelForCausalLM.from_pretrained(models[architecture])
    tokenizer = transformers.AutoTokenizer.from_pretrained(models[architecture])
    letters = tokenizer.convert_tokens_to_ids(["A", "B", "C"])
    assert letter_ids(tokenizer) == tuple(letters)
    with torch.no_grad():
        got = classifier(collate_pairs(PAIRS)).numpy()
        whole = [lm(torch.from_numpy(pair.ids)[None].long()).logits[0, -1, letters].numpy() for pair in PAIRS]
    np.testing.assert_allclose(got, np.stack(whole), atol=1e-4)


def test_letters_go_through_the_cap_and_the_bias_of_their_model(tmp_path: Path) -> None:
    shape = {**tiny.SHAPE, "vocab_size": ROWS, "initializer_range": 0.5, "final_logit_softcapping": 3.0}
    torch.manual_seed(0)
    model = transformers.Gemma2ForCausalLM(transformers.Gemma2Config(**shape, pad_token_id=0))
    model.save_pretrained(tmp_path)
    tiny.chat_tokenizer().save_pretrained(tmp_path)
    classifier = open_classifier(configure(tmp_path, "model.head=letters"), device="cpu")
    with torch.no_grad():
        got = classifier(collate_pairs(PAIRS)).numpy()
        letters = list(letter_ids(tiny.chat_tokenizer()))
        whole = [model.eval()(torch.from_numpy(pair.ids)[None].long()).logits[0, -1, letters].numpy() for pair in PAIRS]
    np.testing.assert_allclose(got, np.stack(whole), atol=1e-4)
    assert 1 < np.abs(got).max() <= 3


class Shapes(TorchDispatchMode):
    """Remembers the shape of every tensor that is made."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[int, ...]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.seen += [tuple(t.shape) for t in (out if isinstance(out, tuple | list) else [out]) if torch.is_tensor(t)]
        return out


@pytest.mark.parametrize("head", ["classifier", "letters"])
def test_no_tensor_holds_the_vocabulary_at_every_token(models: dict[str, Path], head: str) -> None:
    classifier = open_classifier(configure(models["qwen3"], f"model.head={head}"), device="cpu", new_head=True)
    batch = collate_pairs(PAIRS)
    with Shapes() as shapes:
        classifier(batch).sum().backward()
    rows, width = batch.input_ids_BL.shape
    assert (rows, width, 32) in shapes.seen  # hidden states are
    parameters = {tuple(parameter.shape) for parameter in classifier.parameters()}
    dense = [s for s in shapes.seen if np.prod(s) >= width * ROWS and s not in parameters and s[::-1] not in parameters]
    assert dense == []


def test_letters_of_several_tokens_are_shown() -> None:
    class Splitting:
        unk_token_id = None

        def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
            assert not add_special_tokens
            return [3, 4] if text == "B" else [5]

        def convert_ids_to_tokens(self, ids: list[int]) -> list[str]:
            return [f"t{number}" for number in ids]

    with pytest.raises(ConfigError, match=r"model.head: letters need .* but B is 't3' 't4' for this tokenizer"):
        letter_ids(Splitting())


@pytest.mark.parametrize("pooling", POOLINGS)
def test_a_whole_model_is_opened_again_with_its_head(models: dict[str, Path], tmp_path: Path, pooling: str) -> None:
    config = configure(
        models["qwen3"], f"model.pooling={pooling}", "data.max_student_tokens=77", "data.keep_turns=first"
    )
    classifier = randomised(open_classifier(config, device="cpu", new_head=True))
    classifier.backbone.save_pretrained(tmp_path)
    classifier.save_head(tmp_path)
    settings = read_head_settings(tmp_path)
    assert settings == HeadSettings("classifier", pooling, 32, 77, "first")
    again = open_classifier(configure(models["qwen3"]), device="cpu", checkpoint=tmp_path)
    as_base = open_classifier(configure(tmp_path), device="cpu")  # as the base model that it was exported to be
    with torch.no_grad():
        expected = classifier(collate_pairs(PAIRS))
        assert torch.equal(again(collate_pairs(PAIRS)), expected)
        assert torch.equal(as_base(collate_pairs(PAIRS)), expected)
    assert again.settings == settings


@pytest.fixture
def adapter(models: dict[str, Path], tmp_path: Path) -> Path:
    """A checkpoint with an adapter on the Qwen3 and a head, neither of them zero."""
    classifier = randomised(open_classifier(configure(models["qwen3"]), device="cpu", new_head=True))
    lora = peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    classifier.backbone = peft.get_peft_model(classifier.backbone, lora)
    classifier.backbone.save_pretrained(tmp_path / "adapter")
    classifier.save_head(tmp_path / "adapter")
    with torch.no_grad():
        np.save(tmp_path / "logits.npy", classifier.eval()(collate_pairs(PAIRS)).numpy())
    return tmp_path / "adapter"


def test_an_adapter_is_opened_again_with_its_head(models: dict[str, Path], adapter: Path) -> None:
    again = open_classifier(configure(models["qwen3"]), device="cpu", checkpoint=adapter)
    with torch.no_grad():
        np.testing.assert_array_equal(again(collate_pairs(PAIRS)).numpy(), np.load(adapter.parent / "logits.npy"))


def test_an_adapter_of_another_base_is_refused(models: dict[str, Path], adapter: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"model.name: expected \S+, the base of the adapter in \S+, got "):
        open_classifier(configure(models["llama"]), device="cpu", checkpoint=adapter)
    # a base of the same name whose layers the adapter does not know
    renamed = tmp_path / models["qwen3"].name
    transformers.BertModel.from_pretrained(models["bert"]).save_pretrained(renamed)
    with pytest.raises(ConfigError, match=r"--checkpoint: adapter .* does not fit"):
        open_classifier(configure(renamed), device="cpu", checkpoint=adapter)


def test_an_adapter_of_a_language_model_is_no_adapter_of_its_backbone(
    models: dict[str, Path], adapter: Path, tmp_path: Path
) -> None:
    """Its layers have other names: PEFT would leave the backbone as it was."""
    lm = transformers.AutoModelForCausalLM.from_pretrained(models["qwen3"])
    lora = peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    peft.get_peft_model(lm, lora).save_pretrained(adapter)
    with pytest.raises(ConfigError, match=r"--checkpoint: adapter .* does not fit"):
        open_classifier(configure(models["qwen3"]), device="cpu", checkpoint=adapter)


@pytest.mark.parametrize("given", [True, False])
def test_a_missing_head_is_an_error(models: dict[str, Path], given: bool) -> None:
    checkpoint = models["qwen3"] if given else None
    with pytest.raises(ConfigError, match=r"(--checkpoint|model\.name): \S+ has no classifier.json, so it has no head"):
        open_classifier(configure(models["qwen3"]), device="cpu", checkpoint=checkpoint)


def test_a_head_without_or_with_other_weights_is_an_error(models: dict[str, Path], adapter: Path) -> None:
    about = json.loads((adapter / "classifier.json").read_text())
    (adapter / "classifier.json").write_text(json.dumps({**about, "hidden_size": 16}))
    with pytest.raises(ConfigError, match=r"classifier_head.safetensors does not fit its classifier.json"):
        open_classifier(configure(models["qwen3"]), device="cpu", checkpoint=adapter)
    (adapter / "classifier.json").write_text(json.dumps(about))
    (adapter / "classifier_head.safetensors").unlink()
    with pytest.raises(ConfigError, match=r"has no classifier_head.safetensors with the trained weights of its head"):
        open_classifier(configure(models["qwen3"]), device="cpu", checkpoint=adapter)
    (adapter / "classifier.json").write_text(json.dumps({**about, "classes": ["tie", "model_a", "model_b"]}))
    with pytest.raises(ConfigError, match="expected the classes model_a, model_b, tie, got tie"):
        read_head_settings(adapter)


class Grudging(torch.nn.Module):
    """A classifier that runs out of memory over a number of tokens, and answers with each pair's length."""

    device = torch.device("cpu")

    def __init__(self, most: int) -> None:
        super().__init__()
        self.most, self.batches = most, list[int]()

    def forward(self, batch: Any) -> torch.Tensor:
        if batch.input_ids_BL.numel() > self.most:
            raise torch.OutOfMemoryError("out of memory")
        self.batches.append(len(batch))
        return (batch.last_B + 1)[:, None].expand(-1, 3).float()


def test_pairs_are_scored_in_the_order_given_and_in_less_memory_where_it_must_be() -> None:
    pairs = packed([(4, n % 7 + 1, 2) for n in range(40)])
    lengths = np.array([len(pair.ids) for pair in pairs])
    told: list[int] = []
    classifier: Any = Grudging(most=64)
    got = score_pairs(classifier, pairs, batch_tokens=10_000, progress=told.append)
    np.testing.assert_array_equal(got, np.repeat(lengths[:, None], 3, axis=1))
    assert got.dtype == np.float32
    assert sum(told) == len(pairs)
    with pytest.raises(MemoryExhaustedError, match="a single pair of 14 tokens does not fit"):
        score_pairs(classifier.__class__(most=5), pairs, batch_tokens=100)


def test_scoring_does_not_depend_on_the_batches(models: dict[str, Path]) -> None:
    classifier = randomised(open_classifier(configure(models["bert"]), device="cpu", new_head=True))
    one = score_pairs(classifier, PAIRS, batch_tokens=1)
    many = score_pairs(classifier, PAIRS, batch_tokens=4096)
    np.testing.assert_allclose(one, many, atol=1e-4)


def test_settings_come_from_the_configuration_for_a_new_head(models: dict[str, Path]) -> None:
    settings = open_classifier(configure(models["llama"], "model.head=letters"), device="cpu").settings
    assert settings == HeadSettings("letters", "last", 32, 1024, "last")
