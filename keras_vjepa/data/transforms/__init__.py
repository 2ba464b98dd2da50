"""Make clips that a model takes out of frames."""
