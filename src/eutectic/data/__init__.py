"""Data sets: cards, catalogue, preparation, the Arrow store and splits."""
