"""Base models: the encoders a job may start from."""
