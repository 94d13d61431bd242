"""Files to rows, rows to splits, tokens and batches."""
