"""What a user may ask of a loss: one class each, the home of its defaults, formula, tasks and paper. Torch-free."""
