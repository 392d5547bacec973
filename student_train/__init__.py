"""Train a student from a teacher store, with no teacher in memory."""
