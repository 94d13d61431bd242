"""The saved folder: manifest, description, reading and verifying. Torch-free."""
