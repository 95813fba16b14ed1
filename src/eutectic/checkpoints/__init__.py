"""Models on disk: eutectic's format, models by name, and checkpoints of the original JMP and of fairchem."""
