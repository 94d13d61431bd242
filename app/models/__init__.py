"""Models: what a finished job leaves behind."""
