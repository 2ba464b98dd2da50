"""Folders that hold a model, and where they come from."""
