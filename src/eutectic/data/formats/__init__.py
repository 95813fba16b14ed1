"""Readers of file formats. Each turns one format into structures or arrays, and knows no data set."""
