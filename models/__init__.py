"""Opening models: transformers, vLLM, devices, workers. Import what you need of it: some modules bring torch."""

__all__ = [
    "batches",
    "devices",
    "head",
    "huggingface",
    "packed_attention",
    "precision",
    "vllm",
    "vocabulary",
    "weights",
    "workers",
]
