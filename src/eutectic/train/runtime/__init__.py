"""Processes, devices, signals, memory, journal and loggers of a run."""
