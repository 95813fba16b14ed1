"""Estimates of time, memory and money for a run, on this machine and on a cluster."""
