"""The learning core: torch, and no web, queue or database. It runs by hand without the service."""
