"""Backbones of other packages; each file is the only one that depends on its package.

A package is imported only when a model needs it. `eutectic.checkpoints.foreign` reads their weights.
"""
