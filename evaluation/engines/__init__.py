"""What generates answers: one file an engine, named in `logitbank.registry`."""
