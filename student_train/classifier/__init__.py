"""Students that say which of two answers is preferred, trained from a label store."""
