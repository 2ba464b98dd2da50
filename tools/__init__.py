"""Provide small commands beside the recipes."""
