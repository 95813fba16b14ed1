"""Models on disk: eutectic's format, the models in the package, and checkpoints of the original JMP."""
