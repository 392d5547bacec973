"""Models that say which of two answers is preferred: a backbone and a head of three classes.

Shape letters: B pairs, L padded length, D hidden size, C classes, V rows of the `lm_head`.
"""

from __future__ import annotations

import dataclasses
import shlex
import warnings
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn

from logitbank.configs.schema import Config, ConfigError, ModelConfig
from logitbank.experiment import is_same_model
from logitbank.models.head import Transform, backbone_of, causal_lm, evaluating, find_head
from logitbank.models.huggingface import load_backbone, load_causal_lm, load_tokenizer, require_quantization
from logitbank.models.pair_batch import PairBatch
from logitbank.models.pair_head import (
    HEAD_SETTINGS,
    ClassifierHead,
    HeadSettings,
    load_head,
    read_head_settings,
    write_head,
    write_head_settings,
)
from logitbank.preference import LETTERS

ADAPTER_CONFIG = "adapter_config.json"


class PairClassifier(nn.Module):
    """A backbone and its head, whose forward returns the logits of `CLASSES`.

    Attributes:
        backbone: any `AutoModel`, quantised or inside PEFT or not; with the letters head a causal language model.
        head: `ClassifierHead`, or None with the letters head.
        settings: how pairs must be packed for it.
        letters: token ids of A, B and C; None with a `ClassifierHead`.
    """

    def __init__(
        self,
        backbone: nn.Module,
        settings: HeadSettings,
        *,
        head: ClassifierHead | None = None,
        letters: tuple[int, int, int] | None = None,
    ) -> None:
        """Put a head on a backbone.

        Raises:
            ConfigError: letters, and a model whose logits are not a function of its last hidden states alone.
        """
        super().__init__()
        assert (head is None) != (letters is None)
        self.backbone = backbone
        self.settings = settings
        self.head = head
        self.letters = letters
        self._transform = None if letters is None else _letters_transform(backbone)
        hidden_states = self._hidden_states()
        _trim(hidden_states)
        self._reads_ahead = _reads_ahead(hidden_states)

    @property
    def _no_split_modules(self) -> list[str]:
        """Classes of the layers that FSDP shards one by one; Accelerate asks for them by this name."""
        present = {type(module).__name__ for module in self.modules()}
        return sorted(present & set(causal_lm(self.backbone)._no_split_modules or []))

    @property
    def device(self) -> torch.device:
        """Where it reads its tokens."""
        found: torch.device = causal_lm(self.backbone).get_input_embeddings().weight.device
        return found

    def forward(self, batch: PairBatch) -> torch.Tensor:
        """(B, C) float32 logits.

        Letters are the rows of the whole head at one position a pair, (B, V): no tensor of L × V is made.
        """
        hidden_states = self._hidden_states()
        # no real token attends to padding after it: a causal model needs no mask
        mask_BL = batch.attention_mask_BL if self._reads_ahead else None
        hidden_BLD = hidden_states(**_inputs(hidden_states, batch.input_ids_BL, mask_BL)).last_hidden_state
        if self.head is not None:
            logits_BC: torch.Tensor = self.head(hidden_BLD.to(self.head.linear.weight.device), batch)
            return logits_BC
        assert self.letters is not None
        assert self._transform is not None
        rows_B = torch.arange(len(batch), device=hidden_BLD.device)
        lm_head = causal_lm(self.backbone).get_output_embeddings()
        logits_BV = self._transform(lm_head(hidden_BLD[rows_B, batch.last_B]))
        return logits_BV[:, list(self.letters)].float()

    def save_head(self, directory: Path) -> None:
        """Write the head's weights, where it has any of its own, and `classifier.json` into a directory."""
        if self.head is not None:
            write_head(directory, self.head)
        write_head_settings(directory, self.settings)

    def _hidden_states(self) -> Any:
        """What computes the last hidden states."""
        inner = causal_lm(self.backbone)
        return inner if self.letters is None else backbone_of(inner)


def open_classifier(
    config: Config,
    *,
    device: torch.device | str,
    checkpoint: Path | None = None,
    load_in_4bit: bool = False,
    load_in_8bit: bool = False,
    new_head: bool = False,
    trainable: bool = False,
    dtype: str | None = None,
    stay_on_host: bool = False,
) -> PairClassifier:
    """Open a classifier in evaluation mode.

    What a checkpoint ends in is what its `classifier.json` says, and so for a base model that was exported with a
    head of the kind that `model.head` names; a language model needs none for letters.

    Args:
        config: `model` names the base; `data` says how pairs are packed for a head that has no settings of its own.
        device: where to put it.
        checkpoint: a directory that training or export wrote, an adapter or a whole model; None for the base model.
        load_in_4bit: quantise linear layers, see `models.huggingface.load_causal_lm`.
        load_in_8bit: likewise, to 8 bits.
        new_head: begin with the head of the base model, where it has one of this kind and pooling, else with zeros.
        trainable: whether an adapter's weights will be trained on.
        dtype: of the weights; default `model.dtype`.
        stay_on_host: leave the weights in host memory; who shards them moves them to `device`.

    Raises:
        ConfigError: no such model or checkpoint, no head in it, an adapter of another base, letters of several
            tokens, or weights that cannot be quantised here.
    """
    for key, asked in (("load_in_4bit", load_in_4bit), ("load_in_8bit", load_in_8bit)):
        if asked:
            require_quantization(key)
    settings, head_at = _find_head_settings(config, checkpoint, new_head=new_head)
    kind = config.head if settings is None else settings.head
    adapter = checkpoint if checkpoint is not None and (checkpoint / ADAPTER_CONFIG).is_file() else None
    options = {"load_in_4bit": load_in_4bit, "load_in_8bit": load_in_8bit, "stay_on_host": stay_on_host}
    load = load_causal_lm if kind == "letters" else load_backbone
    backbone = load(weights_of(config.model, checkpoint), dtype=dtype, device=device, **options)
    if settings is None:
        settings = HeadSettings.of(config, int(backbone.config.get_text_config().hidden_size))
    if adapter is not None:
        backbone = _with_adapter(backbone, adapter, config.model, trainable=trainable)
    if kind == "letters":
        letters = letter_ids(load_tokenizer(tokenizer_of(config.model, checkpoint)))
        return PairClassifier(backbone, settings, letters=letters).eval()
    head = ClassifierHead(settings.hidden_size, settings.pooling) if head_at is None else load_head(head_at, settings)
    return PairClassifier(backbone, settings, head=head if stay_on_host else head.to(device)).eval()


def weights_of(model: ModelConfig, checkpoint: Path | None) -> ModelConfig:
    """The model whose weights are loaded; an adapter comes on top of them.

    Raises:
        ConfigError: a checkpoint with no model in it.
    """
    if checkpoint is None or (checkpoint / ADAPTER_CONFIG).is_file():
        return model
    if not (checkpoint / "config.json").is_file():
        raise ConfigError(
            f"--checkpoint: {checkpoint} holds neither {ADAPTER_CONFIG} (an adapter) nor config.json (a model)"
        )
    return dataclasses.replace(model, name=str(checkpoint.resolve()), revision=None)


def tokenizer_of(model: ModelConfig, checkpoint: Path | None) -> ModelConfig:
    """The model whose tokenizer packs the pairs: the checkpoint's own, where it has one."""
    if checkpoint is None or not (checkpoint / "tokenizer_config.json").is_file():
        return model
    return dataclasses.replace(model, name=str(checkpoint.resolve()), revision=None)


def letter_ids(tokenizer: Any) -> tuple[int, int, int]:
    """The tokens A, B and C.

    Raises:
        ConfigError: a letter that is several tokens, shown, or one that the tokenizer does not know.
    """
    found: list[int] = []
    for letter in LETTERS:
        ids = tokenizer.encode(letter, add_special_tokens=False)
        if len(ids) != 1 or ids[0] == tokenizer.unk_token_id:
            tokens = " ".join(map(repr, tokenizer.convert_ids_to_tokens(ids)))
            raise ConfigError(
                f"model.head: letters need each of {', '.join(LETTERS)} to be one token, but {letter} is {tokens} for "
                "this tokenizer; use model.head=classifier"
            )
        found += ids
    if len(set(found)) < len(LETTERS):
        raise ConfigError(
            f"model.head: letters need {', '.join(LETTERS)} to be different tokens, but this tokenizer has none of "
            "them; use model.head=classifier"
        )
    return found[0], found[1], found[2]


def _find_head_settings(
    config: Config, checkpoint: Path | None, *, new_head: bool
) -> tuple[HeadSettings | None, Path | None]:
    """The settings of the head that is there, and where it is; None if a new one is made."""
    directory = Path(config.model.name).expanduser() if checkpoint is None else checkpoint
    settings = read_head_settings(directory)
    if checkpoint is None and settings is not None:
        other_pooling = config.head == "classifier" and settings.pooling != config.model.pooling
        if settings.head != config.head or (new_head and other_pooling):
            settings = None
        elif new_head:  # training continues from it, on pairs as they are packed now
            settings = HeadSettings.of(config, settings.hidden_size)
    if settings is not None:
        return settings, directory if settings.head == "classifier" else None
    if config.head == "classifier" and not new_head:
        where = "--checkpoint" if checkpoint is not None else "model.name"
        raise ConfigError(
            f"{where}: {shlex.quote(str(directory))} has no {HEAD_SETTINGS}, so it has no head that scores "
            "preferences; give a checkpoint that train-student or export-model wrote, or use model.head=letters"
        )
    return None, None


def _with_adapter(backbone: Any, adapter: Path, model: ModelConfig, *, trainable: bool) -> Any:
    """Put an adapter on its base.

    Raises:
        ConfigError: an adapter of another base, or one that does not fit it.
    """
    import peft  # slow to import, and needed only for adapters

    try:
        base = peft.PeftConfig.from_pretrained(str(adapter)).base_model_name_or_path
        if base is not None and not is_same_model(base, model.name):
            raise ConfigError(f"model.name: expected {base}, the base of the adapter in {adapter}, got {model.name}")
        with warnings.catch_warnings():
            # PEFT would leave the layers that it finds no weights for as they were made
            warnings.filterwarnings("error", message="Found missing adapter keys")
            return peft.PeftModel.from_pretrained(backbone, str(adapter), is_trainable=trainable)
    except ConfigError:
        raise
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, UserWarning, SafetensorError) as error:
        reason = str(error).strip().splitlines()[0].split(": [")[0] if str(error).strip() else type(error).__name__
        raise ConfigError(f"--checkpoint: adapter {adapter} does not fit {model.name}: {reason}") from error


def _letters_transform(lm: Any) -> Transform:
    transform = find_head(causal_lm(lm))
    if transform is None:
        raise ConfigError(
            f"model.head: the logits of {type(causal_lm(lm)).__name__} cannot be computed at a single position, "
            "which letters need; use model.head=classifier"
        )
    return transform


def _inputs(backbone: Any, ids_BL: torch.Tensor, mask_BL: torch.Tensor | None) -> dict[str, Any]:
    inputs = {"input_ids": ids_BL} if mask_BL is None else {"input_ids": ids_BL, "attention_mask": mask_BL}
    return inputs | ({"use_cache": False} if hasattr(backbone.config, "use_cache") else {})


def _trim(backbone: Any) -> None:
    """Take away what would be unused, or would treat one token id as padding.

    The pooler of BERT and its kin gets no gradient, which DDP refuses; an embedding with a `padding_idx` never learns
    that token, which may well be a real one: many models pad with the token that ends a turn.
    """
    if getattr(backbone, "pooler", None) is not None:
        backbone.pooler = None
    embeddings = backbone.get_input_embeddings()
    if getattr(embeddings, "padding_idx", None) is not None:
        embeddings.padding_idx = None


def _reads_ahead(backbone: Any) -> bool:
    """Whether what a model says of a token depends on later ones, as an encoder's does: then it needs a mask.

    The model is asked: only where another third token changes no bit of what it says of the first two is it causal.
    """
    device = backbone.get_input_embeddings().weight.device
    with torch.no_grad(), evaluating(backbone):
        seen = [
            backbone(**_inputs(backbone, torch.tensor([ids], device=device), None)).last_hidden_state[:, :2]
            for ids in ([1, 2, 3], [1, 2, 4])
        ]
    return not torch.equal(*seen)
