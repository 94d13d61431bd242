"""Everything a user may ask for, as pydantic classes; the only home of defaults. Torch-free."""
