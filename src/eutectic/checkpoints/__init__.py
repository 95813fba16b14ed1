"""Models on disk: our own format, the models in this package, and checkpoints of the original JMP."""
