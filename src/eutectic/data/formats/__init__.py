"""Readers of file formats, independent of any data set. Each converts one format to structures or arrays."""
