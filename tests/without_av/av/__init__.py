"""First on the path, this makes PyAV as good as not installed."""

raise ModuleNotFoundError("No module named 'av' (tests/without_av)")
