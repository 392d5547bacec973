"""How λ is decided: one file a strategy, with all of its parts, named in `logitbank.registry`."""
