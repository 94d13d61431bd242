"""How much a key and a project may ask for."""
