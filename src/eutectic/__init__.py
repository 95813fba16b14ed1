"""Joint multi-domain pre-training of atomistic models: one backbone, many data sets, any property."""

__version__ = "0.1.0"
