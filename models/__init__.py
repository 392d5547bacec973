"""Opening models: transformers, vLLM, devices, workers. Import what you need of it: some modules bring torch."""

__all__ = [
    "batches",
    "classifier",
    "devices",
    "fallbacks",
    "head",
    "huggingface",
    "packed_attention",
    "pair_batch",
    "pair_head",
    "pair_scoring",
    "precision",
    "vllm",
    "vocabulary",
    "weights",
    "workers",
]
