"""From files to batches, with NumPy and OpenCV alone."""
