"""How top-K logits become arrays: one file per encoding, registered in `logitbank.registry.ENCODINGS`."""
