"""Background work: Celery rings, a slot claims a row, a runner watches one child process."""
