"""Datasets: uploaded once, normalised to Parquet, immutable."""
