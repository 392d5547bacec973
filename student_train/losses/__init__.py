"""KD terms: one file a loss, named in `logitbank.registry`."""
