"""A model over a whole dataset, by the child of a job, like a training. Torch-free."""
