"""Small programs that serve a transformers folder by others' means; each runs in that peer's own environment."""
