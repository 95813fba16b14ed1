"""Predictions of a trained model in physical units."""
