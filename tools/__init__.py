"""Small commands."""
