"""Sampling of batches, and loading them in the background."""
