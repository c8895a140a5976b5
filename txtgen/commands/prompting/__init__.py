"""Prompts and results: files, pipes, sessions."""
