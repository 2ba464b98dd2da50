"""The one folder that knows which engine runs: torch, JAX or TensorFlow."""
