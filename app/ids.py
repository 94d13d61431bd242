"""Ids: a prefix that names the kind, then a time-sortable random part."""

import secrets
import time


def new_id(prefix: str) -> str:
    """Return e.g. `job_019a8f3c2b7e5f…`: 48 bits of milliseconds, then 80 random bits, in hex."""
    return f"{prefix}_{int(time.time() * 1000):012x}{secrets.token_hex(10)}"
