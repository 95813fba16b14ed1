"""Studies of many runs: comparisons of starts and seeds, sweeps, and their results as plain data."""
