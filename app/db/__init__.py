"""The database: its sessions, its tables, its migrations."""
