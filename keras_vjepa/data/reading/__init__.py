"""From a file to exact frames."""
