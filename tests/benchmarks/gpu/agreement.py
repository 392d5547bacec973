"""What bfloat16 changes, and whether the engine's blocks say what the model's own logits say."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from logitbank.configs.schema import ModelConfig
from logitbank.models.huggingface import load_causal_lm
from logitbank.teacher_cache.engines.base import Sequenced
from logitbank.teacher_cache.engines.huggingface import HFTeacher
from tests.benchmarks.bare import bare_forward
from tests.benchmarks.gpu.setting import Row, Setting


def run(setting: Setting) -> Iterator[Row]:
    """The engine against the model in both formats, then the formats against each other."""
    batch = [Sequenced(sequence) for sequence in setting.sequences(8, 96, 32)]
    source, logits = ModelConfig(name=setting.model), {}
    for dtype in ("float32", "bfloat16"):
        model = load_causal_lm(source, dtype=dtype, device=setting.device)
        logits[dtype] = bare_forward(model, batch, setting.device).reshape(-1, setting.vocab_size).float().cpu()
        teacher = HFTeacher(source, dtype=dtype, tokenizer_size=setting.vocab_size, device=setting.device)
        rows = teacher.score(batch, setting.top_k)
        whole_TK = logits[dtype].gather(1, torch.from_numpy(rows.token_ids).long())
        values = (torch.from_numpy(rows.logits) - whole_TK).abs().max()
        sums = (torch.from_numpy(rows.logsumexp) - logits[dtype].logsumexp(dim=1)).abs().max()
        del model, teacher
        setting.clean()
        yield Row(
            "agreement", f"engine and model in {dtype}, largest difference", f"logits {values:.1e}, sums {sums:.1e}"
        )
    exact, rounded = (logits[dtype].double().log_softmax(dim=1) for dtype in ("float32", "bfloat16"))
    kl = (exact.exp() * (exact - rounded)).sum(dim=1).mean()
    first = (exact.argmax(dim=1) == rounded.argmax(dim=1)).double().mean()
    yield Row("agreement", "KL(float32 ‖ bfloat16), nats a token", f"{kl:.1e}")
    yield Row("agreement", "same first choice in both", f"{first:.1%}")
