"""A run: its folder, its steps, and what is saved and told of it."""
