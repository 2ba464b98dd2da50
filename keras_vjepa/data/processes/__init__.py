"""Processes of their own that read files, and what is sent to them and back."""
