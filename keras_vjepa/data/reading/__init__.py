"""Read exact frames out of files."""
