"""The schema's history, one revision a file. `app/db/migrate.py` runs it and says how to write the next one."""
