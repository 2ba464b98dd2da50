"""Keras layers of the transformers."""
