"""Backbones of other packages, each in one file that is the only one to know its package.

A package is imported when a model needs it, and not before. `eutectic.checkpoints.foreign` reads their weights.
"""
