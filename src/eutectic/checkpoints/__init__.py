"""Models on disk: eutectic's format, models by name, and checkpoints of JMP, fairchem and other packages."""
