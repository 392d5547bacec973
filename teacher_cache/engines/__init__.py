"""What scores given answers: one file an engine, named in `logitbank.registry`."""
