"""Aliases: names that stand for a model, and may come to stand for another while they are asked."""
