"""Students of preferences that nothing trained: random adapters, heads and whole models in tiny directories."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
import torch
from transformers import AutoModel

from logitbank.models.pair_head import ClassifierHead, HeadSettings, write_head, write_head_settings
from logitbank.preference import SeenPrompts
from tests.tiny import SHAPE, chat_tokenizer, save_model

SETTINGS = HeadSettings("classifier", "pair", SHAPE["hidden_size"], 256, "last")  # type: ignore[arg-type]


def save_base(path: Path, seed: int = 0, **changes: Any) -> Path:
    """A language model whose layers all have multiples of 16 inputs."""
    return save_model(path, chat_tokenizer(), rows=300, seed=seed, **changes)


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


def _save_rest(path: Path, seed: int) -> Path:
    head = ClassifierHead(SETTINGS.hidden_size, SETTINGS.pooling)
    torch.nn.init.normal_(head.linear.weight)
    torch.nn.init.normal_(head.linear.bias)
    write_head(path, head)
    write_head_settings(path, SETTINGS)
    SeenPrompts.of([7, seed], [100 + seed]).write(path)
    chat_tokenizer().save_pretrained(path)
    return path
