"""Make batches out of samples."""
