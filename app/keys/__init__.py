"""API keys and the projects they open."""
