"""Files to batches, in NumPy: nothing here imports Keras or a backend (§3.4)."""
