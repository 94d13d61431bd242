"""Losses: the catalogue a caller may choose from, all of it read off the spec classes."""
