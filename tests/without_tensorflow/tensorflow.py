"""First on the path, this makes TensorFlow as good as not installed."""

raise ModuleNotFoundError("No module named 'tensorflow' (tests/without_tensorflow)")
