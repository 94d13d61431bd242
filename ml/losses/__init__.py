"""One loss a file, and the table that finds a loss by the type of its spec."""
