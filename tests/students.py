"""Students of preferences that nothing trained: random adapters, heads and whole models in tiny directories."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import peft
import torch
from numpy.typing import NDArray
from transformers import AutoModel, AutoModelForCausalLM

from logitbank.configs.schema import Config, ModelConfig
from logitbank.models.classifier import open_classifier
from logitbank.models.pair_head import ClassifierHead, HeadSettings, write_head, write_head_settings
from logitbank.models.pair_scoring import score_pairs
from logitbank.preference import TASK, SeenPrompts
from logitbank.tasks.preference import PairPacker
from tests.storage import label_stores
from tests.tiny import SHAPE, chat_tokenizer, save_model

SETTINGS = HeadSettings("classifier", "pair", SHAPE["hidden_size"], 256, "last")  # type: ignore[arg-type]


def save_base(path: Path, seed: int = 0, **changes: Any) -> Path:
    """A language model whose layers all have multiples of 16 inputs."""
    return save_model(path, chat_tokenizer(), rows=300, seed=seed, **changes)


def save_bfloat16_base(path: Path) -> Path:
    """The same in bfloat16, as models are published."""
    save_base(path)
    AutoModelForCausalLM.from_pretrained(path).bfloat16().save_pretrained(path)
    return path


def save_adapter(path: Path, base: Path, seed: int, **changes: Any) -> Path:
    """An adapter of random matrices on the base's backbone, with head, tokenizer and what it saw."""
    torch.manual_seed(seed)
    options = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "down_proj"], **changes}
    lora = peft.LoraConfig(init_lora_weights=False, **options)
    peft.get_peft_model(AutoModel.from_pretrained(base), lora).save_pretrained(path)
    return _save_rest(path, seed)


def save_whole(path: Path, base: Path, seed: int, **options: Any) -> Path:
    """A whole backbone, every weight of which moved, with the same files beside it."""
    torch.manual_seed(seed)
    model = AutoModel.from_pretrained(base)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.02 * torch.randn_like(parameter)
    model.save_pretrained(path, **options)
    return _save_rest(path, seed)


def class_logits(directory: Path) -> NDArray[np.float32]:
    """(N,3) of the training rows of label stores."""
    packer = PairPacker(chat_tokenizer(), max_tokens=SETTINGS.max_tokens)
    config = Config(tasks=[TASK], model=ModelConfig(name=str(directory)))
    classifier = open_classifier(config, device="cpu", checkpoint=directory)
    return score_pairs(classifier, [packer.pack(pair) for pair in label_stores.TRAIN], batch_tokens=512)


def export_result(directory: Path) -> dict[str, Any]:
    """What `export.json` says came of an export."""
    found: dict[str, Any] = json.loads((directory / "export.json").read_text())["result"]
    return found


def _save_rest(path: Path, seed: int) -> Path:
    head = ClassifierHead(SETTINGS.hidden_size, SETTINGS.pooling)
    torch.nn.init.normal_(head.linear.weight)
    torch.nn.init.normal_(head.linear.bias)
    write_head(path, head)
    write_head_settings(path, SETTINGS)
    SeenPrompts.of([7, seed], [100 + seed]).write(path)
    chat_tokenizer().save_pretrained(path)
    return path
