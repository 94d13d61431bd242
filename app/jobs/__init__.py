"""Jobs: one table, one state machine, whatever the kind of work."""
