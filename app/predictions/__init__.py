"""Predictions: a text in, labels and scores out."""
