"""Processes, devices, signals, memory, the journal and loggers of a run."""
